"""A training of several processes in which one fails; started as `b2inst.train` is, by Lightning or by torchrun.

B2INST_TEST_FAULT says what happens before the second step, as `WHAT RANK FOLDER`: process RANK raises an error, is
killed, or waits for the others (`raise`, `kill`, `wait`), and the others sleep, as if they would never notice. All
leave a file with their process id in the folder; `failed` is written at the moment of the fault.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from b2inst import distributed, train
from b2inst.lit import LitSegmenter

VARIABLE = "B2INST_TEST_FAULT"


def fail(module: LitSegmenter, batch: object, batch_idx: int) -> None:
    what, who, folder = os.environ[VARIABLE].split()
    (Path(folder) / f"pid{distributed.rank()}").write_text(str(os.getpid()))
    if module.global_step < 1:
        return
    if distributed.rank() != int(who):
        time.sleep(600)
    while not (Path(folder) / f"pid{1 - int(who)}").is_file():
        time.sleep(0.1)
    (Path(folder) / "failed").touch()
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise":
        raise RuntimeError("this process fails")


if __name__ == "__main__":
    LitSegmenter.on_train_batch_start = fail
    train.main()
