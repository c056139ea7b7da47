"""A training that logs to a W&B server in the same process, which goes away: `python wandb_run.py FOLDER [absent]`."""

from __future__ import annotations

import gzip
import json
import logging
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from callbacks.small_run import SmallModule, batch

STEPS, WAIT = 30, 4.0
RUN = {
    "id": "1", "name": "run", "displayName": "run", "description": "", "config": "{}", "sweepName": None,
    "project": {"id": "1", "name": "b2inst", "entity": {"id": "1", "name": "me"}}, "historyLineCount": 0,
}  # fmt: skip
ANSWERS = {  # by what is asked for; all else is answered with nothing
    "upsertBucket": {"upsertBucket": {"bucket": RUN, "inserted": True}},
    "viewer": {"viewer": {"id": "1", "username": "me", "entity": "me", "email": "", "flags": "{}",
                          "teams": {"edges": []}}},
}  # fmt: skip


class Server(BaseHTTPRequestHandler):
    """As much of W&B as a run needs to start."""

    protocol_version = "HTTP/1.0"  # a connection for each request, so that none is left when the server goes
    asked: list[str] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        query = json.loads(body).get("query", "") if self.path == "/graphql" else ""
        self.asked.append(self.path + query)
        answer = json.dumps({"data": next((value for key, value in ANSWERS.items() if key in query), {})}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


class GoesAway(pl.Callback):
    """Stops the server in the middle."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.server = server

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == STEPS // 2:
            self.server.shutdown()
            self.server.server_close()


def main(folder: Path, absent: bool) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    os.environ.update(
        WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}", WANDB_API_KEY="0" * 40, WANDB_MODE="online"
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if absent:
        server.shutdown()
        server.server_close()
    from b2inst.callbacks.wandb_logger import wandb_logger
    from b2inst.runtime import job

    logging.basicConfig()
    start = time.monotonic()
    with job(0, False, False, "highest"):
        logger = wandb_logger(str(folder), wait=WAIT, project="b2inst", name="run")
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=1, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[] if absent else [GoesAway(server)],
        )  # fmt: skip
        module = SmallModule()
        module.on_train_batch_end = lambda *_: module.log("step_done", float(trainer.global_step))
        trainer.fit(module, torch.utils.data.DataLoader([batch(str(i)) for i in range(STEPS)], batch_size=None))
    started = sum("upsertBucket" in text for text in Server.asked)
    told = {"steps": trainer.global_step, "started": started, "seconds": time.monotonic() - start}
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "absent" in sys.argv[2:])
