"""Predictions of several processes, stopped at any moment and continued: each image once, in memory that is bounded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from b2inst import predict as entry
from b2inst.config import ConfigError, plain
from b2inst.paths import config_dir
from b2inst.predict_paths import Paths
from b2inst.predict_shards import Shards
from b2inst.predict_source import open_source
from b2inst.split import Split, this_split
from toy import toy_checkpoint

IMAGES = 12
BROKEN = 7  # position of the file that cannot be read


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoint(tmp_path_factory.mktemp("toy") / "toy.ckpt", best_threshold=0.45)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split") / "photos"
    folder.mkdir()
    for seed in range(IMAGES):
        noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
        cv2.imwrite(str(folder / f"{seed:02d}.png"), cv2.GaussianBlur(noise, (0, 0), 3))
    (folder / f"{BROKEN:02d}.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def whole(ckpt: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds that nobody stops."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert predict(ckpt, photos, output).images == IMAGES - 1
    assert not (output / "shards").exists()
    return output


def predict(ckpt: Path, source: Path | str, output: Path, /, **changes: Any) -> entry.Summary:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(compose("predict"))
    given = {"ckpt": str(ckpt), "input": str(source), "output": str(output), "device": "cpu", "progress": False}
    return entry.predict({**config, "show": None, **given, **changes})


def equal(output: Path, other: Path) -> bool:
    names = ("results.json", "images.json", "problems.json")
    return all((output / name).read_bytes() == (other / name).read_bytes() for name in names)


def positions(output: Path) -> Counter[int]:
    """How often each image was done, torn lines left out."""
    files = (path.read_bytes().splitlines(keepends=True) for path in (output / "shards").glob("*.jsonl"))
    return Counter(json.loads(line)["position"] for lines in files for line in lines if line.endswith(b"\n"))


# ------------------------------------------------------------------ who does what


@pytest.mark.parametrize("run_name", ["", "job 7"])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_each_image_has_one_process(count: int, run_name: str) -> None:
    owners = [[Split(i, count, run_name).owns(n) for i in range(count)] for n in range(10 * count)]
    assert all(sum(owner) == 1 for owner in owners)
    shares = np.sum(owners, axis=0)
    assert shares.tolist() == [10] * count


def test_what_one_process_left_open_is_shared_in_the_next_run() -> None:
    left = [n for n in range(800) if Split(3, 8, "job 7").owns(n)]
    shares = [sum(Split(i, 8, "job 8").owns(n) for n in left) for i in range(8)]
    assert min(shares) > 0 and max(shares) < 40


@pytest.mark.parametrize(
    ("given", "environment", "split"),
    [
        (None, {}, Split()),
        (None, {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, Split(1, 4, "", 1)),
        (None, {"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_JOB_ID": "9"}, Split(2, 3, "9")),
        (None, {"SLURM_NTASKS": "3"}, Split()),
        ("3/5", {"RANK": "1", "WORLD_SIZE": "4"}, Split(3, 5)),
    ],
)
def test_the_part_of_a_process(given: str | None, environment: dict[str, str], split: Split) -> None:
    assert this_split(given, environment) == split


@pytest.mark.parametrize("given", ["2/2", "-1/2", "1", "a/b", "/", "1/0"])
def test_no_part(given: str) -> None:
    with pytest.raises(ConfigError, match=f"shard={given}: is no part.*shard=0/4"):
        this_split(given, {})


def test_what_cannot_be_split(ckpt: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="force=true: several processes.*remove the folder"):
        predict(ckpt, photos, tmp_path / "out", shard="0/2", force=True)
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    with pytest.raises(ConfigError, match="a video is not split in 2 parts; give shard=0/1"):
        predict(ckpt, clip, tmp_path / "out", shard="1/2")


# ------------------------------------------------------------------ lists


def test_a_list_of_paths(ckpt: Path, photos: Path, tmp_path: Path) -> None:
    names = [str(photos / "03.png"), "", str(photos / "00.png"), str(tmp_path / "gone.jpg")]
    (tmp_path / "list.txt").write_bytes("\r\n".join(names).encode())  # no end of the last line
    source = open_source(str(tmp_path / "list.txt"))
    assert [str(path) for path in source.paths] == [name for name in names if name] and source.name == "list"
    summary = predict(ckpt, tmp_path / "list.txt", tmp_path / "out")
    assert (summary.images, summary.skipped) == (2, 1)
    (problem,) = json.loads((tmp_path / "out/problems.json").read_text())
    assert problem == {"id": 3, "file_name": names[3], "problem": f"{names[3]}: does not exist; check the path"}
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ConfigError, match="empty.txt: lists nothing; write"):
        open_source(str(tmp_path / "empty.txt"))


def test_paths_take_little_memory() -> None:
    names = [f"/data/images/{number // 1000:05d}/{number:09d}.jpg" for number in range(50_000)]
    paths = Paths(names)
    assert [str(paths[n]) for n in (0, 1, 49_999)] == [names[n] for n in (0, 1, 49_999)]
    assert paths.state_bytes == sum(map(len, names)) + 8 * len(names)
    assert paths.digest() != Paths(names[::-1]).digest()


# ------------------------------------------------------------------ stopped and continued


def test_parts_make_the_whole(ckpt: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    first = predict(ckpt, photos, tmp_path / "out", shard="1/2")
    assert (first.images, first.skipped, first.left) == (5, 1, 6) and "6 images of other processes" in str(first)
    assert not (tmp_path / "out/results.json").exists()
    second = predict(ckpt, photos, tmp_path / "out", shard="0/2")
    assert (second.images, second.left, second.totals.images) == (6, 0, 11)
    assert equal(tmp_path / "out", whole)
    again = predict(ckpt, photos, tmp_path / "out", shard="0/2")
    assert (again.images, again.before, again.totals) == (0, 12, second.totals)


def test_a_line_that_is_cut_off_anywhere_does_not_count(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.begin({})
    for position in range(2):
        shards.add(Split(), position, {"id": position + 1, "file_name": "ä"}, [{"score": 0.5}], "")
    shards.close()
    (file,) = (tmp_path / "shards").glob("*.jsonl")
    content = file.read_bytes()
    one = content.index(b"\n") + 1
    for length in range(len(content) + 1):
        file.write_bytes(content[:length])
        done = shards.done()
        assert done.count == (length >= one) + (length == len(content))
        assert shards.torn == (length not in (0, one, len(content)))
        assert len(list(shards.entries())) == done.count


def test_an_image_that_two_processes_did_counts_once(tmp_path: Path) -> None:
    for index, done in enumerate(((0, 1, 3), (1, 2, 3))):
        shards = Shards(tmp_path)
        shards.begin({})
        for position in done:
            record = {"image_id": position, "score": 0.5}
            shards.add(Split(index, 2), position, {"id": position, "file_name": "a"}, [record], "")
        shards.close()
    assert shards.merge({1: "a"}).images == shards.done().count == 4
    assert [record["image_id"] for record in json.loads((tmp_path / "results.json").read_text())] == [0, 1, 2, 3]


def test_blocks_that_were_never_written_do_not_count(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.begin({})
    (tmp_path / "shards/a.jsonl").write_bytes(b'{"position":0,"image":{},"results":[]}\n' + bytes(100) + b"\n")
    assert shards.done().count == 1 and shards.torn == 1


def test_another_input_is_not_continued(ckpt: Path, photos: Path, tmp_path: Path) -> None:
    predict(ckpt, photos, tmp_path / "out", shard="0/2")
    other = toy_checkpoint(tmp_path / "other.ckpt", best_threshold=0.5)
    for name, changes in (("input", {}), ("ckpt", {}), ("score_threshold", {"score_threshold": 0.9})):
        source = photos / "00.png" if name == "input" else photos
        with pytest.raises(ConfigError, match=f"was begun with another {name}; give the same"):
            predict(other if name == "ckpt" else ckpt, source, tmp_path / "out", shard="1/2", **changes)


def test_killed_and_continued_by_other_numbers_of_processes(
    ckpt: Path, photos: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    kill_after(2, ckpt, photos, output, ranks=2)
    assert 0 < positions(output).total() < IMAGES and not (output / "results.json").exists()
    for path in (output / "shards").glob("*.jsonl"):  # as if they had been writing just then
        path.write_bytes(path.read_bytes()[:-9])
    before = positions(output)
    for index in (2, 0, 1):
        summary = predict(ckpt, photos, output, shard=f"{index}/3")
    assert summary.left == 0 and equal(output, whole)
    assert positions(output) == Counter(range(IMAGES)) and set(before) <= set(range(IMAGES))


@pytest.mark.soak
def test_killed_many_times(ckpt: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    kills = 0 if "B2INST_SOAK" not in os.environ else 8
    output = tmp_path / "out"
    for number in range(kills):
        kill_after(1, ckpt, photos, output, ranks=1 + number % 3, wait=0.3 * (number % 4))
    if not (output / "results.json").exists() or Shards(output).exist:  # else the last ones were done in time
        predict(ckpt, photos, output)
    assert equal(output, whole)


def kill_after(images: int, ckpt: Path, photos: Path, output: Path, ranks: int, wait: float = 0) -> None:
    """Start processes as a launcher does, and kill them all when so many images more are done, and some time later."""
    before = positions(output).total()
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
        env |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "TORCHELASTIC_RUN_ID": str(before)}
        command = [
            sys.executable, "-m", "b2inst.predict", f"ckpt={ckpt}", f"input={photos}", f"output={output}",
            "device=cpu", "progress=false", "show=[masks,bases]",
        ]  # fmt: skip
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    until = time.monotonic() + 240
    while positions(output).total() < before + images and time.monotonic() < until:
        if all(process.poll() is not None for process in processes):
            break
        time.sleep(0.002)
    time.sleep(wait)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_under_torchrun(ckpt: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    arguments = (
        "--standalone", "--nproc-per-node=2", "-m", "b2inst.predict", f"ckpt={ckpt}", f"input={photos}",
        f"output={tmp_path}/out", "show=null", "device=cpu",
    )  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert equal(tmp_path / "out", whole)
    assert positions(tmp_path / "out") == Counter(range(IMAGES))
    assert len(list((tmp_path / "out/shards").glob("*-of-00002-*.jsonl"))) == 2


def test_exit_codes_of_parts(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["predict", f"ckpt={ckpt}", "input=list.txt", "output=out", "progress=false"])
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        if rank == 0:
            entry.main()  # another process may still read something
        else:
            with pytest.raises(SystemExit, match="2"):
                entry.main()
    assert "error: none of 2 images could be read" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["problems.json", "shards"]


def test_what_was_begun_is_dropped_with_force(ckpt: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict(ckpt, photos, output, shard="0/2", score_threshold=0.9)
    predict(ckpt, photos, output, force=True)
    assert equal(output, whole) and not (output / "shards").exists()
    shutil.rmtree(output)


MEMORY = """
import resource, sys, tracemalloc
from pathlib import Path
import numpy as np
from b2inst.predict_run import run
from b2inst.predict_shards import Shards
from b2inst.predict_source import open_source
from b2inst.predict_writer import Writer
from b2inst.prediction import Prediction
from b2inst.split import Split

class Model:
    def run(self, images, *_):
        masks = tuple({"size": [8, 8], "counts": "0" * 2000} for _ in range(5))
        rows = np.zeros(5, np.int64)
        found = Prediction(np.zeros((5, 4)), np.ones(5), np.ones(5), rows, ("a",) * 5, rows, masks, (8, 8))
        return [(found, None) for _ in images]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

tracemalloc.start()
for name in sys.argv[1:]:
    output = Path(name).with_suffix("")
    tracemalloc.reset_peak()
    shards = Shards(output)
    shards.begin({})
    summary = run(open_source(name), [Model()], Writer(shards, Split(), output), 4, None, False)
    totals = shards.merge({0: "a"})
    assert totals.images + totals.problems == summary.images + summary.skipped
    print(totals.images, totals.problems, resident(), tracemalloc.get_traced_memory()[1] >> 20)
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((8, 8, 3), np.uint8))
    for count in (200, 2000):  # every tenth is missing
        lines = [str(tmp_path / ("gone.png" if number % 10 == 0 else "tiny.png")) for number in range(count)]
        (tmp_path / f"{count}.txt").write_text("\n".join(lines))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "200.txt"), str(tmp_path / "2000.txt")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    few, many = ([int(value) for value in line.split()] for line in done.stdout.splitlines())
    assert few[:2] == [180, 20] and many[:2] == [1800, 200]
    assert many[2] - few[2] <= 4  # MB that stay; the results are 20 MB
    assert many[3] - few[3] <= 2  # MB at most, of what Python and NumPy allocate
