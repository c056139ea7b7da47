#!/usr/bin/env python3
"""Download COCO 2017 from its official addresses into the layout that `data=coco` expects.

    python scripts/download_coco.py --root data/coco
    python scripts/download_coco.py --root data/coco --parts val2017,annotations

An interrupted download goes on where it stopped, a finished part is not fetched again. Every archive is compared
with a pinned MD5 before it is unpacked, since the official server speaks plain HTTP, and zip's own checksums are
compared while it is unpacked. Later calls compare the sizes of the files. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

BASE_URL = "http://images.cocodataset.org"
CHUNK = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without a byte
RESERVE = 1 << 28  # bytes left free


@dataclass(frozen=True)
class Part:
    """One archive of the set.

    Attributes:
        path: below the base address.
        size: of the archive in bytes.
        md5: of the archive, in hexadecimal digits.
        unpacked: bytes of its files, roughly.
        folder: the one folder that its files are in.
    """

    path: str
    size: int
    md5: str
    unpacked: int
    folder: str

    @property
    def archive(self) -> str:
        """Name of the archive."""
        return self.path.rsplit("/", 1)[-1]


# The server publishes no checksums: these are what independent projects that pin the archives agree on, among them
# PaddlePaddle's and MLCommons' scripts.
PARTS = {
    "train2017": Part(
        "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2", 19_400_000_000, "train2017"
    ),
    "val2017": Part("zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", 820_000_000, "val2017"),
    "annotations": Part(
        "annotations/annotations_trainval2017.zip", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c", 850_000_000,
        "annotations",
    ),
}  # fmt: skip


class DownloadError(RuntimeError):
    """What went wrong, with the file or address and the remedy."""


class _Interrupted(Exception):
    """The connection ended early; it is worth another try."""


# ------------------------------------------------------------------------------------------------------- download


def check_url(url: str) -> None:
    """Refuse an address that nothing can be fetched from, before anything is tried.

    Raises:
        DownloadError: it is no address of a web server.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        # an empty host, a port that is no number and a host with empty parts are errors, too
        sound = (
            parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and parts.netloc.encode("idna")
        )
    except ValueError:
        sound = False
    if not sound or not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        raise DownloadError(
            f"--base-url {url!r}: is no address of a web server; give one like {BASE_URL} or https://host/folder, "
            "with other characters as %XX"
        )


def fetch(url: str, target: Path, size: int, tries: int = 5, pause: float = 2.0) -> None:
    """Download a file; what an earlier try left in `target.part` is not fetched again.

    Args:
        url: where it is.
        target: where it goes, once it is whole.
        size: bytes that it has.
        tries: how often in a row the connection may fail without a new byte.
        pause: seconds before the next try, doubled each time.

    Raises:
        DownloadError: the server has no such file or another one, or cannot be reached.
    """
    part = target.with_name(target.name + ".part")
    failures = 0
    while (before := _length(part)) != size:
        try:
            _fetch_rest(url, part, size)
        except _Interrupted as error:
            failures = failures + 1 if _length(part) <= before else 1
            if failures >= tries:
                raise DownloadError(
                    f"{url}: {error} ({failures} times in a row); {_length(part):,} of {size:,} bytes are in {part}: "
                    "start again later, and it goes on from there"
                ) from error
            print(f"{target.name}: {error}; trying again", file=sys.stderr)
            time.sleep(pause * 2 ** (failures - 1))
    part.replace(target)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch_rest(url: str, part: Path, size: int) -> None:
    """Append what is missing of a file, or fetch it anew where the server cannot continue."""
    have = _length(part)
    if have > size:
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            if response.status != 206:  # the server ignores ranges and sends the whole file
                have = 0
            _check_length(url, response, have, size)
            with part.open("r+b" if part.exists() else "wb") as file:
                file.truncate(have)
                file.seek(have)
                _copy(response, file, Progress(part.name.removesuffix(".part"), size, have))
    except urllib.error.HTTPError as error:
        _explain_status(url, error)
    except http.client.InvalidURL as error:
        raise DownloadError(f"{url}: cannot be asked for ({error}); check --base-url") from error
    except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection failed ({getattr(error, 'reason', error)!r})") from error
    except OSError as error:
        raise DownloadError(
            f"{part}: cannot be written ({error.strerror}); free the disk or give another --root"
        ) from error
    if _length(part) < size:
        raise _Interrupted(f"the connection ended at {_length(part):,} of {size:,} bytes")
    if _length(part) > size:
        part.unlink()
        raise DownloadError(f"{url}: is longer than the official file with {size:,} bytes; check --base-url")


def _check_length(url: str, response: http.client.HTTPResponse, have: int, size: int) -> None:
    """Refuse another file at once, and not after the download."""
    start = response.headers.get("Content-Range", f"bytes {have}-").split(" ")[-1].split("-")[0]
    if start != str(have):
        raise _Interrupted(f"the server continues at byte {start} and not at {have}")
    length = response.headers.get("Content-Length")
    if length is not None and have + int(length) != size:
        raise DownloadError(
            f"{url}: the server announces {have + int(length):,} bytes, the official file has {size:,}; is a proxy or "
            "a login page between? Check --base-url"
        )


def _explain_status(url: str, error: urllib.error.HTTPError) -> None:
    if error.code == 429 or error.code >= 500:
        raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
    remedy = "check --base-url, and whether the file is there"
    raise DownloadError(f"{url}: the server answers {error.code} {error.reason}; {remedy}") from error


def _copy(source: IO[bytes], target: IO[bytes], progress: Progress) -> None:
    while data := source.read(CHUNK):
        target.write(data)
        progress.add(len(data))
    progress.end()


class Progress:
    """A line on the terminal with share and speed; where the output is no terminal, a line every ten percent."""

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self.name, self.total, self.done, self.start = name, max(total, 1), done, done
        self.began = time.monotonic()
        self.shown = -1.0
        self.terminal = sys.stderr.isatty()

    def add(self, amount: int) -> None:
        """So much more is done."""
        self.done += amount
        share, now = 100 * self.done / self.total, time.monotonic()
        if (now - self.shown >= 0.5) if self.terminal else (share - self.shown >= 10):
            self.shown = now if self.terminal else share
            speed = (self.done - self.start) / max(now - self.began, 1e-3) / 1e6
            line = f"{self.name}: {share:5.1f} % of {self.total / 1e6:,.0f} MB, {speed:.1f} MB/s"
            print(
                f"\r{line}  " if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True
            )

    def end(self) -> None:
        """Leave the line."""
        if self.terminal:
            print(file=sys.stderr)


# ----------------------------------------------------------------------------------------------------- checksums


def check_archive(path: Path, part: Part) -> None:
    """Compare an archive with its pinned MD5.

    Raises:
        DownloadError: it is another one; the file is removed.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    if digest.hexdigest() != part.md5:
        path.unlink()
        raise DownloadError(
            f"{path}: its MD5 is {digest.hexdigest()}, the official file has {part.md5}; it was damaged or exchanged "
            "on its way and is removed: start again"
        )


# ----------------------------------------------------------------------------------------------------- unpacking


def unpack(archive: Path, root: Path, folder: str, overwrite: bool = False) -> dict[str, int]:
    """Unpack an archive; every name is checked before the first file is written.

    Args:
        archive: a zip file.
        root: where its files go.
        folder: the one folder below the root that they may go to.
        overwrite: replace files that are there with other content; those that are merely cut off are replaced anyway.

    Returns:
        size in bytes of each file, by its name in the archive.

    Raises:
        DownloadError: the archive is damaged, a name leaves the folder, or another file is in the way.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                check_member(archive, member, root, folder)
            check_names(archive, file.infolist())
            members = [member for member in file.infolist() if not member.is_dir()]
            progress = Progress(f"unpacking {archive.name}", sum(member.file_size for member in members))
            for member in members:
                _extract(file, member, root, overwrite)
                progress.add(member.file_size)
            progress.end()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{archive}: is no sound zip archive ({error}); remove it and start again") from error
    return {member.filename: member.file_size for member in members}


def check_member(archive: Path, member: zipfile.ZipInfo, root: Path, folder: str) -> None:
    """Refuse a member of an archive that is no plain file or folder inside of `root/folder`."""
    name = getattr(member, "orig_filename", member.filename)
    path = PureWindowsPath(name)  # splits at both kinds of slash and knows drives
    kind = stat.S_IFMT(member.external_attr >> 16)
    reason = None
    if path.drive or path.root or ".." in path.parts or "\0" in name or ":" in name:
        reason = "leaves the target"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        reason = "is a link or a special file"
    elif not path.parts or path.parts[0] != folder or "\\" in name:
        reason = f"is not in {folder}/"
    elif not (root / name).resolve().is_relative_to(root.resolve() / folder):  # a link on this disk
        reason = f"leaves {root / folder} through a link"
    if reason:
        raise _malicious(archive, member, reason)


def check_names(archive: Path, members: Iterable[zipfile.ZipInfo]) -> None:
    """Refuse an archive in which two members would be the same file, or one a file and a folder."""
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for member in members:
        path = PurePosixPath(member.filename)
        folders.update([path] if member.is_dir() else [], path.parents)
        if not member.is_dir():
            if path in files:
                raise _malicious(archive, member, "is there twice")
            files.add(path)
    for member in members:
        if not member.is_dir() and PurePosixPath(member.filename) in folders:
            raise _malicious(archive, member, "is a file, and a folder of other members")


def _malicious(archive: Path, member: zipfile.ZipInfo, reason: str) -> DownloadError:
    remedy = "nothing was unpacked: do not use this archive"
    return DownloadError(f"{archive}: the member {member.filename!r} {reason}; {remedy}")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, root: Path, overwrite: bool) -> None:
    """Write one file, so that it is there whole or not at all; one with the same content is left alone."""
    target = root / member.filename
    if target.exists() and not overwrite:
        same = target.is_file() and _begins_with(archive, member, target)
        if same and target.stat().st_size == member.file_size:
            return
        if not same:
            raise DownloadError(f"{target}: is there with other content; move it away, or give --overwrite")
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(member) as source, part.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(
            f"{archive.filename}: the member {member.filename!r} cannot be unpacked to {target} ({error.strerror}); "
            "free the disk, move away what is in the way, or give another --root"
        ) from error


def _begins_with(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> bool:
    """Whether a file has the content of a member, or the first bytes of it."""
    if path.stat().st_size > member.file_size:
        return False
    with archive.open(member) as source, path.open("rb") as file:
        while data := file.read(CHUNK):
            if source.read(len(data)) != data:
                return False
    return True


# ---------------------------------------------------------------------------------------------------------- parts


def marker(root: Path, name: str) -> Path:
    """The file that says that a part is complete."""
    return root / f".{name}.complete.json"


def mark_complete(root: Path, name: str, part: Part, files: dict[str, int]) -> None:
    """Write down that a part is complete, with the sizes of its files in bytes."""
    path = marker(root, name)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps({"md5": part.md5, "files": files}) + "\n")
    beside.replace(path)


def is_complete(root: Path, name: str, part: Part) -> bool:
    """Whether a part was unpacked before, and all its files still have their sizes; says which have not."""
    try:
        content = json.loads(marker(root, name).read_text())
        if content["md5"] != part.md5:
            return False
        files = content["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    changed = [file for file, size in files if _size(root / file) != size]
    if changed:
        first = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        print(f"{name}: {len(changed):,} of {len(files):,} files are missing or of another size: {first}")
    return not changed


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def check_disk(root: Path, parts: Iterable[Part], keep: bool) -> None:
    """Refuse to begin where the parts do not fit on the disk.

    Archives are removed one by one, unless they are kept, so only the largest counts beside all the files. Files that
    are there already need no room.

    Raises:
        DownloadError: too little is free.
    """
    rests = []
    unpacked = 0
    for part in parts:
        archive = root / part.archive
        rests.append(max(0, part.size - _length(archive) - _length(archive.with_name(archive.name + ".part"))))
        unpacked += max(0, part.unpacked - _present(root / part.folder))
    needed = unpacked + (sum(rests) if keep else max(rests, default=0)) + RESERVE
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DownloadError(
            f"{root}: {free / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB are needed; free some, give another --root, "
            "or fetch fewer --parts"
        )


def _present(folder: Path) -> int:
    """Bytes of the files in a folder."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return 0


def download(
    root: Path,
    names: Sequence[str],
    parts: dict[str, Part] = PARTS,
    base_url: str = BASE_URL,
    keep: bool = False,
    overwrite: bool = False,
) -> None:
    """Fetch, check and unpack parts of the set; what is complete is left alone.

    Args:
        root: folder of the set.
        names: keys of `parts`.
        parts: what there is.
        base_url: where the parts are.
        keep: do not remove the archives.
        overwrite: replace files that are there with other content.

    Raises:
        DownloadError: something went wrong; the message says what to do.
    """
    check_url(base_url)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(f"{root}: cannot be made ({error.strerror}); give another --root") from error
    wanted = [name for name in names if not is_complete(root, name, parts[name])]
    for name in names:
        if name not in wanted:
            print(f"{name}: complete in {root / parts[name].folder}")
    if wanted:
        check_disk(root, [parts[name] for name in wanted], keep)
    for name in wanted:
        part, archive = parts[name], root / parts[name].archive
        if not archive.exists():
            fetch(f"{base_url.rstrip('/')}/{part.path}", archive, part.size)
        check_archive(archive, part)
        files = unpack(archive, root, part.folder, overwrite)
        mark_complete(root, name, part, files)
        if not keep:
            archive.unlink()
        print(f"{name}: {len(files):,} files in {root / part.folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Download COCO 2017.", epilog="Then: python -m b2inst.verify data=coco"
    )
    base = Path(os.environ.get("B2INST_DATA") or "data")
    parser.add_argument("--root", type=Path, default=base / "coco", help="folder of the set; default: %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; default: %(default)s")
    parser.add_argument("--base-url", default=BASE_URL, help="of a mirror; default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="keep the archives after they were unpacked")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there with other content")
    options = parser.parse_args(argv)
    names = [name.strip() for name in options.parts.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts: {', '.join(unknown)} unknown; choose from {', '.join(PARTS)}")
    try:
        download(options.root.expanduser(), names, PARTS, options.base_url, options.keep, options.overwrite)
    except (DownloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
