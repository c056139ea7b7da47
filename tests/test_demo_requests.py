"""The running demo, asked for what it must not give: files, addresses, too much."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from demo_process import DemoProcess, running_demo
from toy import toy_checkpoint

pytest.importorskip("gradio", reason="the demo needs Gradio: pip install 'b2inst[demo]'")

MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image beside the checkpoint, in the folder in which the demo is started."""
    path = tmp_path_factory.mktemp("demo") / "secret.png"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 3)).save(path)
    return path


@pytest.fixture(scope="module")
def demo(beside: Path) -> Iterator[DemoProcess]:
    ckpt = toy_checkpoint(beside.parent / "toy.ckpt")
    open_all = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SERVER_NAME": "0.0.0.0", "http_proxy": "http://192.0.2.1:3128"}
    with running_demo(ckpt, beside.parent, f"max_megabytes={MAX_BYTES / 1e6}", "max_samples=2", **open_all) as running:
        yield running


def as_file(path: str) -> dict[str, Any]:
    return {"path": path, "orig_name": "a.png", "url": None, "meta": {"_type": "gradio.FileData"}}


def look_at(demo: DemoProcess, image: Any) -> dict[str, Any]:
    return demo.event(demo.event_number("file"), image, 0.1, ["masks"])


def test_an_upload_is_looked_at(demo: DemoProcess, beside: Path) -> None:
    """That the requests of the other tests would be served if nothing were refused."""
    (path,) = json.loads(demo.upload("a.png", beside.read_bytes()).body)
    done = look_at(demo, as_file(path))
    assert done["success"] and "instances" in done["output"]["data"][2]
    assert demo.ask(f"/gradio_api/file={path}").status == 200


def test_files_that_nobody_uploaded_are_not_served(demo: DemoProcess, beside: Path) -> None:
    (path,) = json.loads(demo.upload("a.png", beside.read_bytes()).body)
    up = "/".join([".."] * len(Path(path).parents))
    wanted = ["/etc/passwd", str(beside), beside.name, str(beside.with_name("toy.ckpt")), f"{path}/{up}/etc/passwd"]
    for name in [*wanted, *(name.replace("/", "%2F") for name in wanted)]:
        for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/"):
            answer = demo.ask(route + name)
            assert answer.status in (403, 404), (route, name, answer)


def test_paths_in_events_are_refused_unless_they_are_uploads(demo: DemoProcess, beside: Path) -> None:
    for path in ("/etc/passwd", str(beside), beside.name):
        for image in (as_file(path), {**as_file(path), "meta": {}}, {"path": path}, path, [as_file(path)]):
            done = look_at(demo, image)
            assert not done["success"], (image, done)
            assert "root:" not in json.dumps(done) and "instances" not in json.dumps(done)
    # a part that expects no file at all
    done = demo.event(demo.event_number("file"), None, as_file(str(beside)), ["masks"])
    assert not done["success"]
    index = demo.event(demo.event_number("gallery"), 0.1, ["masks"], event_data={"index": str(beside), "value": None})
    assert not index["success"] or "instances" not in json.dumps(index)


def test_addresses_are_not_fetched(demo: DemoProcess, beside: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        for address in ("http://example.org/a.png", f"http://127.0.0.1:{server.getsockname()[1]}/a.png"):
            for done in (look_at(demo, as_file(address)), look_at(demo, {**as_file(address), "url": address})):
                assert not done["success"], done
            assert demo.ask(f"/gradio_api/file={address}").status == 403
            assert demo.ask(f"/gradio_api/proxy={address}").status in (400, 403, 404)
        with pytest.raises(TimeoutError):
            server.accept()
    assert "example.org: the demo has no network access" in demo.log.read_text()


def test_an_upload_is_limited(demo: DemoProcess) -> None:
    assert demo.upload("a.png", bytes(MAX_BYTES // 2)).status == 200
    answer = demo.upload("a.png", bytes(2 * MAX_BYTES))
    assert answer.status == 413 and b"maximum" in answer.body


def test_only_this_machine_is_listened_to(demo: DemoProcess) -> None:
    socket.create_connection(("127.0.0.1", demo.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):  # another address of this machine, which 0.0.0.0 would include
        socket.create_connection(("127.0.0.2", demo.port), timeout=5)
    assert demo.ask("/", Host=f"localhost:{demo.port}").status == 200
    assert demo.ask("/", Host="rebound.example.org").status == 400


def test_the_page_may_ask_nobody_else(demo: DemoProcess) -> None:
    page = demo.ask("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy
    for route in ("/config", "/theme.css"):
        assert demo.ask(route).headers["content-security-policy"] == policy
    assert b"fonts.googleapis" not in page.body + demo.ask("/config").body + demo.ask("/theme.css").body
    assert json.loads(demo.ask("/config").body)["analytics_enabled"] is False


def test_the_terminal_shows_the_address_and_no_link(demo: DemoProcess) -> None:
    lines = demo.log.read_text().splitlines()
    assert lines[0] == f"The demo is at {demo.url} (Ctrl-C ends it)"
    assert not any("gradio.live" in line for line in lines)
