"""Stands in for `b2inst.train` and `inspect_run.py`, so that a run takes no time.

python fake_study.py train OVERRIDES... | python fake_study.py inspect RUN ...
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def train(arguments: list[str]) -> int:
    """Note the call; wait, fail or end as the file `behave` beside the runs says for this run, a word each time."""
    values = dict(text.split("=", 1) for text in arguments)
    folder = Path(values["output"].strip("'"))
    with (folder / "calls").open("a") as file:
        file.write(f"{values['ckpt_path']} {values['trainer.precision']}\n")
    (folder / "checkpoints").mkdir(exist_ok=True)
    behave = folder.parents[2] / "behave.json"
    words = json.loads(behave.read_text()).get("/".join(folder.parts[-3:]), []) if behave.is_file() else []
    calls = len((folder / "calls").read_text().splitlines())
    word = words[calls - 1] if calls <= len(words) else "end"
    if word == "wait":
        signal.signal(signal.SIGTERM, lambda *_: save(folder))
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    if word == "fail":
        print("no memory for this")
        return 1
    config = "{name: a, schedule: {steps: 1}, data: {batch_size: 8}, trainer: {}, logger: {}}"
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.json").write_text(json.dumps({"mask/AP": 0.5}))
    return 0


def save(folder: Path) -> None:
    """Take a second over a checkpoint, as a training does that is asked to stop."""
    time.sleep(1)
    (folder / "saved").touch()
    sys.exit(75)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        sys.exit(train(sys.argv[2:]))
    Path(sys.argv[2], "inspection.json").write_text("{}")
