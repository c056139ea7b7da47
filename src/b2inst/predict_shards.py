"""What a prediction has found so far, in a form that survives its end at any moment."""

from __future__ import annotations

import heapq
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import orjson

from b2inst.config import ConfigError
from b2inst.metrics.scores import write_json
from b2inst.split import Split
from b2inst.writing import whole_file

FOLDER, BEGUN = "shards", "begun.json"
BLOCK = 1 << 16  # bytes of a shard that are held at a time when all are read side by side


class Done:
    """Which images are done, in one byte each."""

    def __init__(self) -> None:
        self._flags = bytearray()
        self.count = 0

    def __contains__(self, position: int) -> bool:
        return position < len(self._flags) and self._flags[position] != 0

    def add(self, position: int) -> None:
        """Take an image for done."""
        if position >= len(self._flags):
            self._flags.extend(bytes(position + 1 - len(self._flags)))
        self.count += not self._flags[position]
        self._flags[position] = 1


@dataclass(frozen=True)
class Totals:
    """What the files of a prediction hold: images that were read, instances in them, images that could not be read."""

    images: int
    instances: int
    problems: int


class Shards:
    """Files of lines in JSON, one an image: where it stands in the input, its record, and its results or its problem.

    Each process makes a file of its own and adds to no other, and an image is done once its line is complete. So there
    is nothing to lock or to agree upon, and a process that is killed leaves at most a torn last line, which does not
    count. Should two processes ever do the same image, the first line found counts.

    Args:
        output: folder of the prediction; the shards lie in a folder in it.

    Attributes:
        torn: incomplete lines that the last `done` came upon.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / FOLDER
        self.torn = 0
        self._file: BinaryIO | None = None

    @property
    def exist(self) -> bool:
        """Whether a prediction was begun here that can be continued."""
        return (self.folder / BEGUN).is_file()

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Begin, or go on with what was begun from the same facts.

        Args:
            facts: plain values by name, of all that the results depend on.

        Raises:
            ConfigError: it was begun with others.
        """
        if not self.exist:
            write_json(dict(facts), self.folder / BEGUN)
        begun = orjson.loads((self.folder / BEGUN).read_bytes())
        changed = [name for name, value in facts.items() if begun.get(name) != value]
        if changed:
            raise ConfigError(
                f"output={self.output}: was begun with another {' and '.join(changed)}; give the same to go on, or "
                "another folder"
            )

    def done(self) -> Done:
        """Look which images are done; the files are read once, and not held."""
        done = Done()
        self.torn = 0
        for path in self._paths():
            with path.open("rb") as lines:
                for line in lines:
                    entry = _entry(line)
                    if entry is None:
                        self.torn += 1
                    else:
                        done.add(entry["position"])
        return done

    def add(self, split: Split, position: int, image: Mapping[str, Any], results: Sequence[Any], problem: str) -> None:
        """Write the line of an image; afterwards it is done, whatever happens to this process.

        Args:
            split: names the file.
            position: of the image in the input.
            image: its record.
            results: records of what was found.
            problem: why it could not be read, else empty.

        Raises:
            ValueError: a number is not finite, which JSON cannot hold.
        """
        if self._file is None:
            name = f"{split.index:05d}-of-{split.count:05d}-{uuid.uuid4().hex[:12]}.jsonl"
            self._file = (self.folder / name).open("xb")
        what = {"problem": problem} if problem else {"results": results}
        text = json.dumps({"position": position, "image": image, **what}, allow_nan=False, separators=(",", ":"))
        self._file.write(text.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()

    def entries(self) -> Iterator[dict[str, Any]]:
        """The entries of all shards in the order of their positions, each once."""
        last = -1
        for entry in heapq.merge(*map(_read, self._paths()), key=itemgetter("position")):
            if entry["position"] != last:
                yield entry
            last = entry["position"]

    def merge(self, categories: Mapping[int, str]) -> Totals:
        """Join all shards into `results.json`, `images.json` and, if there are some, `problems.json`.

        Images stand in the order of the input, each once. Of each shard only a few lines are held at a time. Another
        process may do the same at the same time. Where no image could be read, there are only `problems.json`.

        Args:
            categories: names by id.
        """
        totals = {"images": 0, "instances": 0, "problems": 0}
        with ExitStack() as files:
            results, images, problems = (
                _JsonList(files.enter_context(_whole_unless_none(self.output / f"{name}.json", totals, counted)))
                for name, counted in (("results", "images"), ("images", "images"), ("problems", "problems"))
            )
            results.begin("[")
            images.begin('{"images": [')
            problems.begin("[")
            for entry in self.entries():
                if "problem" in entry:
                    totals["problems"] += 1
                    problems.add({**entry["image"], "problem": entry["problem"]})
                else:
                    totals["images"] += 1
                    totals["instances"] += len(entry["results"])
                    images.add(entry["image"])
                    for record in entry["results"]:
                        results.add(record)
            names = [{"id": id, "name": name} for id, name in categories.items()]
            results.end("]")
            images.end(f'],\n "categories": {json.dumps(names)}}}\n')
            problems.end("]\n")
        return Totals(**totals)

    def remove(self) -> None:
        """Remove all shards; nothing can be continued then."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))


class _JsonList:
    """A list in a JSON file, written entry by entry."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._separator = ""

    def begin(self, text: str) -> None:
        self._file.write(text)

    def add(self, entry: Any) -> None:
        self._file.write(self._separator + orjson.dumps(entry).decode())
        self._separator = ",\n"

    def end(self, text: str) -> None:
        self._file.write(text)


class _NoneOfThese(Exception):
    """Nothing is to be written."""


@contextmanager
def _whole_unless_none(path: Path, totals: Mapping[str, int], counted: str) -> Iterator[TextIO]:
    """As `whole_file`, but without a file if nothing was counted under this name in the meantime."""
    with suppress(_NoneOfThese), whole_file(path) as file:
        yield file
        if not totals[counted]:
            raise _NoneOfThese


def _entry(line: bytes) -> dict[str, Any] | None:
    """The entry of a line; None of one that is torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        return orjson.loads(line)
    except ValueError:  # blocks that a machine lost when its power failed
        return None


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a shard. It is not kept open: a run that was stopped often has more shards than a process may."""
    place = 0
    while True:
        with path.open("rb") as file:
            file.seek(place)
            lines = file.readlines(BLOCK)
            place = file.tell()
        if not lines:
            return
        for line in lines:
            entry = _entry(line)
            if entry is not None:
                yield entry
