"""The download against a local server that breaks off, knows no ranges, lies, or serves malicious archives."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "download_coco.py"
SPEC = importlib.util.spec_from_file_location("download_coco", SCRIPT)
coco = importlib.util.module_from_spec(SPEC)
sys.modules["download_coco"] = coco
SPEC.loader.exec_module(coco)

FILES = {f"val2017/{i:04d}.jpg": np.random.default_rng(i).bytes(3000) for i in range(5)}


MINE = bytes(3000)  # of the same size as a file of the archive


def archive(files: dict[str, bytes]) -> bytes:
    return archive_of(list(files.items()))


def archive_of(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name that is there twice
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def part_of(data: bytes, **changes: Any) -> Any:
    values = {"path": "zips/val2017.zip", "size": len(data), "md5": hashlib.md5(data).hexdigest(),
              "unpacked": len(data), "folder": "val2017"}  # fmt: skip
    return coco.Part(**{**values, **changes})


class Server(ThreadingHTTPServer):
    """Serves `data` at every address.

    Attributes:
        statuses: answered to the first requests instead.
        breaks: bytes after which the connection of the next requests ends.
        stall: after a break, keep the connection open without another byte.
        ranges: whether the header Range is obeyed.
        lengths: whether the length is announced.
        requests: the value of Range of every request, and its path.
    """

    daemon_threads = True

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = data
        self.statuses: list[int] = []
        self.breaks: list[int] = []
        self.ranges = self.lengths = True
        self.stall = False
        self.closing = threading.Event()
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        body = server.data[start:]
        self.send_response(206 if wanted and server.ranges else 200)
        if wanted and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)
        if server.stall:
            self.wfile.flush()
            server.closing.wait(60)


@pytest.fixture()
def server() -> Iterator[Server]:
    made = Server(archive(FILES))
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.closing.set()
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    monkeypatch.setattr(coco, "RESERVE", 0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def download(server: Server, root: Path, part: Any = None, **options: Any) -> None:
    coco.download(root, ["val2017"], {"val2017": part or part_of(server.data)}, server.url, **options)


def content(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in (root / "val2017").rglob("*") if p.is_file()}


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# ------------------------------------------------------------------ what works


def test_files_arrive_and_the_archive_goes(server: Server, tmp_path: Path) -> None:
    download(server, tmp_path / "a/coco")
    assert content(tmp_path / "a/coco") == FILES
    assert leftovers(tmp_path / "a/coco") == [".val2017.complete.json", "val2017"]
    assert server.requests == [("/zips/val2017.zip", None)]


def test_a_second_call_fetches_nothing_unless_files_are_gone(server: Server, tmp_path: Path) -> None:
    download(server, tmp_path)
    download(server, tmp_path)
    assert len(server.requests) == 1
    (tmp_path / "val2017/0001.jpg").unlink()
    download(server, tmp_path)
    assert len(server.requests) == 2 and content(tmp_path) == FILES


@pytest.mark.parametrize("length", [0, 1000])
@pytest.mark.parametrize("keep", [True, False])
def test_a_file_that_was_cut_later_is_written_again(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], length: int, keep: bool
) -> None:
    download(server, tmp_path, keep=keep)
    whole = tmp_path / "val2017/0002.jpg"
    before = whole.stat().st_mtime_ns
    (tmp_path / "val2017/0001.jpg").write_bytes(FILES["val2017/0001.jpg"][:length])
    capsys.readouterr()
    download(server, tmp_path)
    assert content(tmp_path) == FILES and len(server.requests) == (1 if keep else 2)
    assert whole.stat().st_mtime_ns == before
    out = capsys.readouterr().out
    assert "val2017: 1 of 5 files are missing or of another size: val2017/0001.jpg" in out and "complete in" not in out
    download(server, tmp_path)
    assert "val2017: complete" in capsys.readouterr().out


def test_a_file_that_the_user_changed_later_is_kept(server: Server, tmp_path: Path) -> None:
    download(server, tmp_path)
    for changed in (b"mine", FILES["val2017/0001.jpg"] + b"more"):
        (tmp_path / "val2017/0001.jpg").write_bytes(changed)
        with pytest.raises(coco.DownloadError, match=r"0001\.jpg: is there with other content.*--overwrite"):
            download(server, tmp_path)
        assert (tmp_path / "val2017/0001.jpg").read_bytes() == changed


@pytest.mark.parametrize("text", ["", "5", "{", '{"md5": "MD5"}', '{"md5": "MD5", "files": 5}'])
def test_a_marker_that_says_no_sizes_does_not_count(server: Server, tmp_path: Path, text: str) -> None:
    download(server, tmp_path)
    coco.marker(tmp_path, "val2017").write_text(text.replace("MD5", part_of(server.data).md5))
    download(server, tmp_path)
    assert len(server.requests) == 2
    marked = json.loads(coco.marker(tmp_path, "val2017").read_text())
    assert marked["files"] == {name: len(data) for name, data in FILES.items()}


def test_files_that_are_there_need_no_room(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    download(server, tmp_path)
    (tmp_path / "val2017/0001.jpg").write_bytes(b"")
    part = part_of(server.data)
    free = SimpleNamespace(free=part.size + part.unpacked - 4 * 3000)
    monkeypatch.setattr(coco.shutil, "disk_usage", lambda path: free)
    download(server, tmp_path)
    assert content(tmp_path) == FILES


def test_archives_can_be_kept_and_are_used_again(server: Server, tmp_path: Path) -> None:
    download(server, tmp_path, keep=True)
    assert (tmp_path / "val2017.zip").read_bytes() == server.data
    shutil.rmtree(tmp_path / "val2017")
    download(server, tmp_path)
    assert len(server.requests) == 1 and content(tmp_path) == FILES


def test_it_goes_on_where_the_connection_ended(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000, 500]
    download(server, tmp_path)
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000-", "bytes=1500-"]
    assert content(tmp_path) == FILES


def test_it_goes_on_in_a_later_call(server: Server, tmp_path: Path) -> None:
    (tmp_path / "val2017.zip.part").write_bytes(server.data[:700])
    download(server, tmp_path)
    assert server.requests[0][1] == "bytes=700-" and content(tmp_path) == FILES


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, [1000]
    download(server, tmp_path)
    assert len(server.requests) == 2 and content(tmp_path) == FILES


def test_nothing_of_an_older_try_is_left_in_a_file_that_begins_anew(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "val2017.zip.part"
    part.write_bytes(b"x" * 3000)
    server.ranges, server.breaks = False, [500] * 5
    with pytest.raises(coco.DownloadError, match="500 of"):
        download(server, tmp_path)
    assert part.read_bytes() == server.data[:500]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    download(server, tmp_path)
    assert len(server.requests) == 3 and content(tmp_path) == FILES


# ------------------------------------------------------------------ what goes wrong


def test_a_server_that_always_breaks_off_is_given_up_and_nothing_is_lost(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000] + [0] * 20
    with pytest.raises(coco.DownloadError, match=r"5 times in a row\); 1,000 of .* start again later"):
        download(server, tmp_path)
    assert (tmp_path / "val2017.zip.part").read_bytes() == server.data[:1000]
    assert len(server.requests) == 5


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(coco.DownloadError, match="connection failed"):
        coco.fetch("http://127.0.0.1:9/x.zip", tmp_path / "x.zip", 5)


@pytest.mark.parametrize(
    "url",
    ["notaurl", "", "ftp://host/coco", "file:///data", "http://", "http://:80", "http://host:port", "http://a b/",
     "http://host/é", "http://host/\n", "http://[::1", "http://a..b/", "//host/coco"],
)  # fmt: skip
def test_what_is_no_address_is_refused_before_anything_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert coco.main(["--root", str(tmp_path / "new"), "--base-url", url]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: --base-url {url!r}: is no address of a web server; give one like http://")
    assert len(error.splitlines()) == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("url", ["http://host", "https://host:8080/a%20b/", "http://127.0.0.1:1", "http://[::1]:80/x"])
def test_what_is_an_address_is_tried(url: str) -> None:
    coco.check_url(url)


@pytest.mark.parametrize("status", [403, 404, 416])
def test_a_file_that_is_not_there(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status]
    with pytest.raises(coco.DownloadError, match=rf"val2017\.zip: the server answers {status}.*--base-url"):
        download(server, tmp_path)
    assert len(server.requests) == 1 and leftovers(tmp_path) == []


def test_wrong_bytes_are_refused_and_removed(server: Server, tmp_path: Path) -> None:
    good = part_of(server.data)
    server.data = bytes([server.data[0] ^ 1]) + server.data[1:]
    with pytest.raises(coco.DownloadError, match=rf"its MD5 is \w+, the official file has {good.md5}.*is removed"):
        download(server, tmp_path, good)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("change", [-10, 10])
def test_another_length_is_refused(server: Server, tmp_path: Path, change: int, lengths: bool) -> None:
    server.lengths = lengths
    part = part_of(server.data, size=len(server.data) + change)
    with pytest.raises(coco.DownloadError, match="announces" if lengths else "longer than|416|ended at"):
        download(server, tmp_path, part)
    assert not (tmp_path / "val2017").exists()


def test_a_full_disk_is_seen_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = part_of(server.data)
    for free, fits in ((part.size + part.unpacked - 1, False), (part.size + part.unpacked, True)):
        monkeypatch.setattr(coco.shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if fits:
            download(server, tmp_path)
        else:
            with pytest.raises(coco.DownloadError, match=r"GB are free, .* are needed.*--root"):
                download(server, tmp_path)
            assert server.requests == []


def test_only_the_largest_archive_counts_unless_all_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    parts = [part_of(b"x" * size, unpacked=100) for size in (10, 30)]
    monkeypatch.setattr(coco.shutil, "disk_usage", lambda path: SimpleNamespace(free=230))
    coco.check_disk(tmp_path, parts, keep=False)
    with pytest.raises(coco.DownloadError):
        coco.check_disk(tmp_path, parts, keep=True)


# ------------------------------------------------------------------ unpacking


OUTSIDE = ("../evil", "val2017/../../evil", "/evil", "val2017/..\\..\\evil", "C:\\evil", "C:evil",
           "\\\\host\\share\\evil", "val2017/a:b", "val2017/..")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"),
    [(name, "leaves the target") for name in OUTSIDE]
    + [(name, "is not in val2017/") for name in ("other/evil", "evil", "val2017\\evil")],
)
def test_no_name_may_leave_the_target(server: Server, tmp_path: Path, name: str, reason: str) -> None:
    server.data = archive({"val2017/good.jpg": b"good", name: b"evil"})
    with pytest.raises(coco.DownloadError, match=rf"val2017\.zip: the member .* {reason}.*nothing was unpacked"):
        download(server, tmp_path / "root")
    assert leftovers(tmp_path) == ["root"] and leftovers(tmp_path / "root") == ["val2017.zip"]


def test_links_are_refused(server: Server, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("val2017/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(link, "/etc")
        file.writestr("val2017/link/passwd", b"evil")
    server.data = buffer.getvalue()
    with pytest.raises(coco.DownloadError, match="link or a special file"):
        download(server, tmp_path)
    assert not (tmp_path / "val2017").exists()


def test_a_link_on_the_disk_is_not_followed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/val2017").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(coco.DownloadError, match="through a link"):
        download(server, tmp_path / "root")
    assert leftovers(tmp_path / "elsewhere") == []


def test_files_of_the_user_are_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "val2017").mkdir()
    for name, data in (("0000.jpg", FILES["val2017/0000.jpg"]), ("0001.jpg", MINE)):
        (tmp_path / "val2017" / name).write_bytes(data)
    before = (tmp_path / "val2017/0000.jpg").stat().st_mtime_ns
    with pytest.raises(coco.DownloadError, match=r"0001\.jpg: is there with other content.*--overwrite"):
        download(server, tmp_path)
    assert (tmp_path / "val2017/0001.jpg").read_bytes() == MINE
    assert (tmp_path / "val2017/0000.jpg").stat().st_mtime_ns == before
    download(server, tmp_path, overwrite=True)
    assert content(tmp_path) == FILES


FOLDER_AND_FILE = "is a file, and a folder of other members"


@pytest.mark.parametrize(
    ("names", "member", "reason"),
    [
        (["val2017/a", "val2017/a/b"], "val2017/a", FOLDER_AND_FILE),
        (["val2017/a/b/c", "val2017/a"], "val2017/a", FOLDER_AND_FILE),
        (["val2017/a/", "val2017/a"], "val2017/a", FOLDER_AND_FILE),
        (["val2017/a", "val2017/a"], "val2017/a", "is there twice"),
        (["val2017/a", "val2017/./a"], "val2017/./a", "is there twice"),
        (["val2017"], "val2017", None),
    ],
)
def test_members_that_exclude_each_other(
    server: Server, tmp_path: Path, names: list[str], member: str, reason: str | None
) -> None:
    server.data = archive_of([("val2017/0.jpg", b"0"), *((name, b"" if name[-1] == "/" else b"x") for name in names)])
    with pytest.raises(coco.DownloadError) as error:
        download(server, tmp_path)
    what = f"the member {member!r} {reason or FOLDER_AND_FILE}; nothing was unpacked: do not use this archive"
    assert str(error.value) == f"{tmp_path / 'val2017.zip'}: {what}"
    assert leftovers(tmp_path) == ["val2017.zip"]


def test_a_file_of_the_user_in_place_of_a_folder_is_named(server: Server, tmp_path: Path) -> None:
    server.data = archive({"val2017/0.jpg": b"0", "val2017/a/b.jpg": b"x"})
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017/a").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(coco.DownloadError, match=r"val2017\.zip: the member 'val2017/a/b.jpg' cannot be unpacked"):
            download(server, tmp_path, overwrite=overwrite)
    assert content(tmp_path) == {"val2017/0.jpg": b"0", "val2017/a": b"mine"}
    assert not coco.marker(tmp_path, "val2017").exists()


@pytest.mark.parametrize("damage", ["no zip", "crc"])
def test_a_damaged_archive(server: Server, tmp_path: Path, damage: str) -> None:
    data = bytearray(server.data)
    if damage == "crc":  # of the first file, the size of whose header is that of its name and 30
        data[30 + len("val2017/0000.jpg") + 5] ^= 1
    server.data = bytes(data) if damage == "crc" else b"<html>" * 100
    with pytest.raises(coco.DownloadError, match="no sound zip archive"):
        download(server, tmp_path)
    assert not list(tmp_path.glob("val2017/*")) and not coco.marker(tmp_path, "val2017").exists()


# ------------------------------------------------------------------ command line


def test_the_command_line(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(coco, "PARTS", {"val2017": part_of(server.data)})
    arguments = ["--root", str(tmp_path), "--base-url", server.url + "/"]
    assert coco.main([*arguments, "--parts", "val2017"]) == 0
    assert "val2017: 5 files" in capsys.readouterr().out
    assert coco.main(arguments) == 0 and "val2017: complete" in capsys.readouterr().out
    server.statuses = [404]
    assert coco.main(["--root", str(tmp_path / "new"), "--base-url", server.url]) == 1
    assert capsys.readouterr().err.startswith("error: http://127.0.0.1")
    with pytest.raises(SystemExit) as stop:
        coco.main(["--parts", "train2018"])
    assert stop.value.code == 2 and "choose from" in capsys.readouterr().err


CHILD = """
import importlib.util, json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start tests with it ignored
spec = importlib.util.spec_from_file_location("download_coco", sys.argv[1])
coco = importlib.util.module_from_spec(spec)
sys.modules["download_coco"] = coco
spec.loader.exec_module(coco)
coco.PARTS, coco.RESERVE = {"val2017": coco.Part(**json.loads(sys.argv[2]))}, 0
sys.exit(coco.main(sys.argv[3:]))
"""


def test_ctrl_c_ends_with_words_and_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    part = part_of(server.data)
    server.breaks, server.stall = [1000], True
    arguments = ["--root", str(tmp_path), "--parts", "val2017", "--base-url", server.url]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(SCRIPT), json.dumps(vars(part)), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    unfinished = tmp_path / "val2017.zip.part"
    deadline = time.monotonic() + 240
    while not unfinished.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=240)
    assert child.returncode == 130 and "Traceback" not in err
    assert err.endswith("stopped; the same command goes on from here\n")
    server.stall = False
    had = unfinished.stat().st_size
    coco.download(tmp_path, ["val2017"], {"val2017": part}, server.url)
    assert content(tmp_path) == FILES and server.requests[1][1] == (f"bytes={had}-" if had else None)


def test_the_pinned_parts_are_those_of_the_layout() -> None:
    assert {name: part.folder for name, part in coco.PARTS.items()} == {
        "train2017": "train2017", "val2017": "val2017", "annotations": "annotations",
    }  # fmt: skip
    assert all(len(part.md5) == 32 and part.unpacked >= part.size for part in coco.PARTS.values())
    assert coco.BASE_URL == "http://images.cocodataset.org"
