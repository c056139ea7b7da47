"""The demo as a user starts it, and requests as somebody else could make them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]


@dataclass
class DemoProcess:
    """A demo that runs; `temporary` is the folder that it makes its own in, `log` all that it printed."""

    port: int
    temporary: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> Answer:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, names)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            response: HTTPResponse | urllib.error.HTTPError = opener.open(request, timeout=240)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return Answer(response.status, response.read(), {k.lower(): v for k, v in response.headers.items()})

    def upload(self, name: str, content: bytes) -> Answer:
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        return self.ask("/gradio_api/upload", body, Content_Type=f"multipart/form-data; boundary={boundary}")

    def event(self, number: int, *data: Any, **more: Any) -> dict[str, Any]:
        """Fire an event by its number, as the page does, and wait for its result."""
        session = uuid.uuid4().hex
        event = {"data": list(data), "fn_index": number, "session_hash": session, **more}
        joined = self.ask("/gradio_api/queue/join", json.dumps(event).encode(), Content_Type="application/json")
        assert joined.status == 200, joined.body
        lines = self.ask(f"/gradio_api/queue/data?session_hash={session}").body.decode().splitlines()
        messages = [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]
        (done,) = [message for message in messages if message["msg"] == "process_completed"]
        return done

    def event_number(self, kind: str) -> int:
        """The number of the event that a part of the page, for instance "file", fires."""
        config = json.loads(self.ask("/config").body)
        (part,) = [part["id"] for part in config["components"] if part["type"] == kind]
        (number,) = [event["id"] for event in config["dependencies"] if part in [id for id, _ in event["targets"]]]
        return number


@contextmanager
def running_demo(ckpt: Path, folder: Path, *arguments: str, **environment: str) -> Iterator[DemoProcess]:
    """Start `python -m b2inst.demo`, and see that it ends well and leaves nothing."""
    demo = DemoProcess(free_port(), folder / "temporary", folder / "log.txt")
    demo.temporary.mkdir()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    env |= {"TMPDIR": str(demo.temporary), **environment}
    command = [sys.executable, "-m", "b2inst.demo", f"ckpt={ckpt}", f"port={demo.port}", "device=cpu", *arguments]
    with demo.log.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 180
        while "The demo is at" not in demo.log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, demo.log.read_text()
            time.sleep(0.1)
        yield demo
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 0, demo.log.read_text()
        left = [path.name for path in demo.temporary.iterdir() if path.name.startswith("b2inst-demo")]
        assert left == [], left
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
