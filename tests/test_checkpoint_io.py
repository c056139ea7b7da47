from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from b2inst.checkpoint_io import AtomicCheckpointIO, damage
from b2inst.config import ConfigError
from b2inst.random_state import random_state, set_random_state
from b2inst.resume import resolve_checkpoint


def written(path: Path, value: int, previous: Path | None = None) -> AtomicCheckpointIO:
    checkpoint_io = AtomicCheckpointIO()
    options = None if previous is None else {"previous": previous}
    checkpoint_io.save_checkpoint({"value": torch.full((1000,), value)}, path, options)
    return checkpoint_io


def value(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["value"][0])


def test_the_one_before_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    last, previous = tmp_path / "new" / "last.ckpt", tmp_path / "new" / "previous.ckpt"
    for number in range(3):
        written(last, number, previous)
    assert (value(last), value(previous)) == (2, 1)
    assert sorted(os.listdir(tmp_path / "new")) == ["last.ckpt", "previous.ckpt"]


def test_links_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(*names: object) -> None:
        tried.append(names)
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for number in range(3):
        written(last, number, previous)
    assert (value(last), value(previous)) == (2, 1) and len(tried) == 2


@pytest.mark.parametrize("place", ["open", "write", "fsync", "replace"])
def test_what_cannot_be_written_leaves_the_old_ones(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    written(last, 0, previous)
    written(last, 1, previous)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=-(10**9)))  # whatever is given up
    if place == "open":
        (tmp_path / ".last.ckpt.tmp").mkdir()
    elif place == "write":
        (tmp_path / ".last.ckpt.tmp").symlink_to("/dev/full")
    else:
        monkeypatch.setattr(os, place, fail)
    assert written(last, 2, tmp_path / "other.ckpt" if place == "replace" else previous).failed
    monkeypatch.undo()
    assert (value(last), value(previous)) == (1, 0)
    assert caplog.text.count("could not be written") == 1 and "the one before stays" in caplog.text
    if place != "open":
        assert not written(last, 3, previous).failed
        assert (value(last), value(previous)) == (3, 1)


@pytest.fixture()
def full(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A disk that has room for so many bytes beside the checkpoints that are there, in all."""
    room = {"all": 0}

    def used(folder: Path) -> int:
        files = {path.stat().st_ino: path.stat().st_size for path in folder.iterdir()}
        return sum(files.values())

    def fsync(descriptor: int) -> None:
        folder = Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent
        if room["all"] and used(folder) > room["all"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=room["all"] - used(Path(folder))))
    return room


def test_a_full_disk_costs_the_one_before_where_that_makes_the_room(
    full: dict[str, int], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    full["all"] = int(2.5 * last.stat().st_size)
    checkpoint_io = written(last, 2, previous)
    assert (value(last), value(previous), checkpoint_io.failed, checkpoint_io.lost) == (2, 1, False, {})
    assert f"the disk is full: {previous} is given up for a new last.ckpt" in caplog.text


@pytest.mark.parametrize("why", ["too little", "the newest is damaged"])
def test_the_one_before_is_not_given_up_for_nothing(why: str, full: dict[str, int], folder: Path) -> None:
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    full["all"] = int((1.5 if why == "too little" else 2.5) * last.stat().st_size)
    if why != "too little":
        last.write_bytes(last.read_bytes()[:-1] + b"!")
    checkpoint_io = written(last, 2, previous)
    assert checkpoint_io.failed and checkpoint_io.lost == {"last.ckpt": "No space left on device"}
    assert value(previous) == 0


def test_damage_is_found_that_reading_does_not_see(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"value": torch.full((1000,), 1)}, path)  # of another program: the parts alone have checksums
    assert damage(path) is None
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    assert damage(path)
    one = bytearray(content)
    one[content.index(torch.full((1000,), 1).numpy().tobytes()) + 5] ^= 4
    path.write_bytes(one)
    torch.load(path, weights_only=True)
    assert "is not what was written" in damage(path)


def test_no_flipped_bit_passes_or_raises(tmp_path: Path) -> None:
    """Neither in the directory of the zip file, which has no checksum, nor in the hash."""
    path = tmp_path / "last.ckpt"
    written(path, 1)
    assert damage(path) is None and value(path) == 1
    content = path.read_bytes()
    directory, seal = content.index(b"PK\1\2"), content.index(b"b2inst sha256 ")
    for i in [*range(0, directory, 97), *range(directory, seal), *range(seal + 14, len(content), 7)]:
        one = bytearray(content)
        one[i] ^= 1 << i % 8
        path.write_bytes(one)
        assert damage(path), f"byte {i} of {len(content)}"


def test_a_flipped_bit_of_a_file_without_a_hash_never_raises(tmp_path: Path) -> None:
    """What is called whole is what torch reads, and as it was."""
    path = tmp_path / "foreign.ckpt"
    torch.save({"value": torch.full((1000,), 1)}, path)
    content, found = path.read_bytes(), 0
    for i in range(content.index(b"PK\1\2"), len(content)):
        one = bytearray(content)
        one[i] ^= 1 << i % 8
        path.write_bytes(one)
        if damage(path) is None:
            assert value(path) == 1
        else:
            found += 1
    assert found > 100


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Of the checkpoints of a run, with last.ckpt and previous.ckpt."""
    folder = tmp_path / "checkpoints"
    for number in range(2):
        written(folder / "last.ckpt", number, folder / "previous.ckpt")
    return folder


@pytest.mark.parametrize("what", ["torn", "missing", "folder", "bomb"])
def test_without_the_newest_the_one_before_is_taken_with_a_warning(
    what: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = folder / "last.ckpt"
    if what == "torn":
        last.write_bytes(b"torn")
    elif what == "bomb":
        torch.save({"value": print}, last)
    else:
        last.unlink()
        if what == "folder":
            last.mkdir()
    assert resolve_checkpoint("last", folder.parent) == str(folder / "previous.ckpt")
    assert f"{last} is {'missing' if what == 'missing' else 'damaged'}" in caplog.text
    assert f"goes on from {folder / 'previous.ckpt'}" in caplog.text


def test_only_damaged_checkpoints_are_an_error_and_no_fresh_start(folder: Path) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / name).write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"last\.ckpt is damaged .*previous\.ckpt is damaged ") as error:
        resolve_checkpoint("last", folder.parent)
    assert "best.ckpt" not in str(error.value), "there is none"
    written(folder / "best.ckpt", 1)
    with pytest.raises(ConfigError, match=r"for instance .*best\.ckpt"):
        resolve_checkpoint("last", folder.parent)


def test_a_pickle_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    torch.save({"value": print}, path)
    with pytest.raises(ConfigError, match="more than tensors and plain values, which is refused; give another"):
        resolve_checkpoint(str(path), tmp_path)


def test_random_states_go_through_a_file(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draws() -> tuple[float, ...]:
        return random.gauss(0, 1), np.random.normal(), float(torch.randn(()))

    draws()  # a generator of normal numbers keeps every second one
    torch.save(random_state(), tmp_path / "state")
    wanted = draws()
    draws()
    set_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert draws() == wanted
