"""The entry point that predicts: sources, files, exit codes and messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from b2inst import predict as entry
from b2inst import predict_panels
from b2inst.config import ConfigError, plain
from b2inst.data.errors import DataError
from b2inst.metrics.results import load_results
from b2inst.models.inference import Switches
from b2inst.models.segmenter import Segmenter
from b2inst.paths import config_dir
from b2inst.predict_models import tell_apart
from b2inst.predict_source import open_source
from toy import CLASSES, run, toy_checkpoint


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoint(tmp_path_factory.mktemp("toy") / "toy.ckpt", best_threshold=0.45)


@pytest.fixture(scope="module")
def plain_ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a boundary basis."""
    return toy_checkpoint(tmp_path_factory.mktemp("plain") / "toy.ckpt", experiment="ablation_a")


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Three images of different sizes, a broken one, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for seed, (name, size) in enumerate({"b.png": (64, 48), "a.jpg": (48, 64), "below/b.jpg": (40, 40)}.items()):
        Image.fromarray(picture(*size, seed)).save(folder / name)
    (folder / "c.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture()
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    for seed in range(5):
        writer.write(picture(48, 64, seed))
    writer.release()
    return path


def picture(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def predict(ckpt: Path, source: Path | str, output: Path, /, **changes: Any) -> entry.Summary:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(compose("predict"))
    given = {"ckpt": str(ckpt), "input": str(source), "output": str(output), "device": "cpu", "progress": False}
    assert not changes.keys() - config.keys()
    return entry.predict({**config, **given, **changes})


def read(output: Path) -> tuple[list[dict], list[dict]]:
    content = json.loads((output / "images.json").read_text())
    assert content["categories"] == [{"id": id, "name": name} for id, name in CLASSES.items()]
    return load_results(output / "results.json", {**content, "annotations": []}), content["images"]


def test_an_image(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    summary = predict(ckpt, folder / "a.jpg", tmp_path / "out")
    records, images = read(tmp_path / "out")
    assert images == [{"id": 1, "file_name": str(folder / "a.jpg"), "height": 48, "width": 64}]
    assert (summary.images, summary.instances, summary.skipped) == (1, len(records), 0)
    assert records and min(record["score"] for record in records) >= 0.45
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "results.json", "images.json"}
    with Image.open(tmp_path / "out/a.png") as drawn:
        assert drawn.size == (7 * 64, 7 * 48)  # enlarged until the shorter side has 320 pixels


def test_the_threshold_of_the_command_line_wins(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    counts = {
        threshold: predict(ckpt, folder / "a.jpg", tmp_path / str(threshold), score_threshold=threshold).instances
        for threshold in (None, 0.45, 0.6, 1)
    }
    assert counts[None] == counts[0.45] > counts[0.6] > counts[1] == 0
    assert read(tmp_path / "1") == ([], read(tmp_path / "None")[1])


def test_a_broken_file_is_named_and_skipped(
    ckpt: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    summary = predict(ckpt, folder, tmp_path / "out", batch_size=2)
    records, images = read(tmp_path / "out")
    assert [(image["id"], Path(image["file_name"]).name) for image in images] == [(1, "a.jpg"), (2, "b.png")]
    assert {record["image_id"] for record in records} == {1, 2}
    assert summary.images == 2 and summary.skipped == 1
    assert f"skipped {folder}/c.jpg: cannot be decoded as an image" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a.png", "b.png"}


def test_a_pattern_finds_files_below_and_keeps_equal_names_apart(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    predict(ckpt, f"{folder}/**/[ab].*", tmp_path / "out")
    _, images = read(tmp_path / "out")
    assert [image["file_name"] for image in images] == [str(folder / n) for n in ("a.jpg", "b.png", "below/b.jpg")]
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["000001_a.png", "000002_b.png", "000003_b.png"]


def test_a_folder_with_brackets_in_its_name_is_no_pattern(folder: Path) -> None:
    other = folder.rename(folder.with_name("photos[1]"))
    assert [path.name for path in open_source(str(other)).paths] == ["a.jpg", "b.png", "c.jpg"]
    assert open_source(str(other)).name == "photos[1]"


def test_a_video(ckpt: Path, video: Path, tmp_path: Path) -> None:
    summary = predict(ckpt, video, tmp_path / "out", batch_size=2)
    records, images = read(tmp_path / "out")
    assert [(image["id"], image["frame"]) for image in images] == [(i + 1, i) for i in range(5)]
    assert {image["file_name"] for image in images} == {str(video)} and summary.images == 5
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == [f"clip_{i:06d}.png" for i in range(5)]
    assert {record["image_id"] for record in records} == {1, 2, 3, 4, 5}


def test_a_video_that_ends_early_is_said(
    ckpt: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = video.read_bytes()
    last_frame = content.rindex(b"00dc", 0, content.index(b"idx1"))
    video.write_bytes(content[:last_frame])
    assert predict(ckpt, video, tmp_path / "out", progress=True).images == 4
    assert f"{video}: ends after 4 of 5 frames" in capsys.readouterr().err


def test_frames_of_a_video_are_rgb(video: Path) -> None:
    first = next(open_source(str(video)).frames()).pixels
    assert np.abs(first.astype(int) - picture(48, 64, 0)[..., ::-1]).mean() < 3  # the writer took it as BGR


def test_everything_that_can_be_shown(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    show = ["masks", "boundary", "bases", "attention"]
    for threshold in (None, 1):  # with instances and without
        output = tmp_path / str(threshold)
        predict(ckpt, folder / "a.jpg", output, show=show, score_threshold=threshold)
        with Image.open(output / "a.png") as drawn:
            assert drawn.width > 2 * 7 * 64 and drawn.height > 2 * 7 * 48
    shown = set()
    for name in show:
        predict(ckpt, folder / "a.jpg", tmp_path / name, show=name)
        shown.add((tmp_path / name / "a.png").read_bytes())
    assert len(shown) == 4


@pytest.fixture()
def captions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Captions and the number of columns of each table of panels, as they are drawn."""
    drawn: list[list[str]] = []
    real = predict_panels.viz.side_by_side

    def side_by_side(pictures: dict, columns: int | None = None) -> Any:
        if columns == 2:  # the tables within the attention panel have three
            drawn.append(list(pictures))
        return real(pictures, columns)

    monkeypatch.setattr(predict_panels.viz, "side_by_side", side_by_side)
    return drawn


def test_which_instance_attention_shows(ckpt: Path, folder: Path, tmp_path: Path, captions: list[list[str]]) -> None:
    given = {"show": ["masks", "attention"], "score_threshold": 0.45}
    predict(ckpt, folder / "a.jpg", tmp_path / "0", **given)
    records, _ = read(tmp_path / "0")
    for instance in (1, len(records)):
        predict(ckpt, folder / "a.jpg", tmp_path / f"{instance}", instance=instance, **given)
    names = [f"{CLASSES[record['category_id']]} {record['score']:.2f}" for record in records]
    assert [row[1] for row in captions] == [
        f"attention of 0: {names[0]}", f"attention of 1: {names[1]}", f"attention: no instance {len(records)}"
    ]  # fmt: skip
    predict(ckpt, folder / "a.jpg", tmp_path / "alone", show="attention", instance=99)
    assert captions[-1] == ["attention: no instance 99"]
    files = [(tmp_path / f"{instance}/a.png").read_bytes() for instance in (0, 1, len(records))]
    assert len(set(files)) == 3 and len(records) > 1


def test_attention_is_computed_only_to_be_shown(
    ckpt: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Segmenter, "blends", None)
    predict(ckpt, folder / "a.jpg", tmp_path / "out", show=["masks", "boundary", "bases"])
    with pytest.raises(TypeError):
        predict(ckpt, folder / "a.jpg", tmp_path / "other", show=["attention"])


def test_a_model_without_attention(ckpt: Path, folder: Path, tmp_path: Path, captions: list[list[str]]) -> None:
    linear = toy_checkpoint(tmp_path / "linear.ckpt", "assembly@model.assembly=linear")
    with pytest.raises(ConfigError, match="masks of .*linear.ckpt are made without attention; leave out attention"):
        predict(linear, folder / "a.jpg", tmp_path / "alone", show=["masks", "attention"])
    predict(linear, folder / "a.jpg", tmp_path / "linear", show=["masks", "bases"])
    predict(ckpt, folder / "a.jpg", tmp_path / "both", show="attention", compare=str(linear))
    assert captions[-1][0].split(": ", 1)[1].startswith("attention of 0")
    assert captions[-1][1].endswith(": no attention in this assembly")


def test_two_models_side_by_side(
    ckpt: Path, plain_ckpt: Path, folder: Path, tmp_path: Path, captions: list[list[str]]
) -> None:
    show = ["masks", "boundary", "bases"]
    one, other = tell_apart([ckpt, plain_ckpt])
    predict(ckpt, folder / "a.jpg", tmp_path / "out", show=show, compare=str(plain_ckpt))
    predict(plain_ckpt, folder / "a.jpg", tmp_path / "turned", show=show, compare=str(ckpt))
    assert captions == [
        [f"{one}: masks", f"{other}: masks", f"{one}: boundary basis", f"{other}: no boundary basis",
         f"{one}: bases", f"{other}: bases"],
        [f"{other}: masks", f"{one}: masks", f"{other}: no boundary basis", f"{one}: boundary basis",
         f"{other}: bases", f"{one}: bases"],
    ]  # fmt: skip
    for output, first in (("out", ckpt), ("turned", plain_ckpt)):
        predict(first, folder / "a.jpg", tmp_path / "alone", show="masks", force=True)
        assert (tmp_path / output / "results.json").read_bytes() == (tmp_path / "alone/results.json").read_bytes()
        alone, both = (np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("alone", output))
        height, width = alone.shape[:2]
        top = next(y for y in range(40) if np.array_equal(both[y : y + height, 4 : 4 + width], alone))
        beside = both[top : top + height, 8 + width : 8 + 2 * width]
        assert not np.array_equal(beside, alone) and (beside != 255).mean() > 0.9
    blank = both[-2 * height : -height - 40, 8:width]  # of the boundary in the column of the plain model
    assert (blank == 255).all()


def test_models_with_other_classes_are_not_compared(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    content = torch.load(ckpt, weights_only=True)
    config = content["hyper_parameters"]["config"]
    for names, message in (
        (["disk", "box", "moon"], "only in ckpt: star; only in compare: moon"),
        (["box", "disk", "star"], "the same names in another order"),
    ):
        config["classes"] = names
        torch.save(content, tmp_path / "other.ckpt")
        with pytest.raises(ConfigError, match=f"compare={tmp_path}/other.ckpt: its 3 classes.*{message}.*give a"):
            predict(ckpt, folder / "a.jpg", tmp_path / "out", compare=str(tmp_path / "other.ckpt"))
    assert not (tmp_path / "out").exists()


def test_switches_reach_both_models(
    ckpt: Path, plain_ckpt: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Switches] = []
    monkeypatch.setattr(Switches, "prepare", lambda self, model: made.append(self) or model)
    predict(ckpt, folder / "a.jpg", tmp_path / "out", compare=str(plain_ckpt), precision="bf16", compile=True)
    assert made == [Switches(precision="bf16", compile=True)] * 2


def test_names_of_checkpoints() -> None:
    for one, other, names in (
        ("/runs/e/checkpoints/best.ckpt", "/runs/a/checkpoints/best.ckpt", ["e", "a"]),
        ("/runs/e/best.ckpt", "/runs/e/last.ckpt", ["best", "last"]),
        ("/runs/e/best.ckpt", "/runs/a/last.ckpt", ["e/best", "a/last"]),
        ("/runs/best.ckpt", "/runs/a/best.ckpt", ["best", "a/best"]),
        ("/runs/a.ckpt", "/runs/a.pth", ["a.ckpt", "a.pth"]),
    ):
        assert tell_apart([Path(one), Path(other)]) == names
    assert tell_apart([Path("/runs/e/best.ckpt")]) == ["best"]


def test_pictures_are_bounded(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    predict(ckpt, folder / "a.jpg", tmp_path / "out", max_side=32, show=["masks", "bases"])
    with Image.open(tmp_path / "out/a.png") as drawn:
        assert drawn.width == 4 + 2 * (32 + 4)


def test_nothing_is_overwritten_without_force(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    predict(ckpt, folder / "a.jpg", output)  # an empty folder is welcome
    before = {path: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(ConfigError, match=f"output={output}: has files already.*force=true"):
        predict(Path("before any work"), folder / "a.jpg", output)
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    predict(ckpt, folder / "a.jpg", output, force=True, score_threshold=1)
    assert read(output)[0] == []


def test_sources_are_never_overwritten(ckpt: Path, folder: Path) -> None:
    for source in (folder, folder / "b.png", f"{folder}/below/*"):
        target = folder / "below" if "below" in str(source) else folder
        with pytest.raises(ConfigError, match="the images are in there"):
            predict(ckpt, source, target, force=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ckpt": None}, "ckpt: missing; give ckpt=FILE"),
        ({"ckpt": "none.ckpt"}, "ckpt=none.ckpt: no such file; give"),
        ({"input": None}, "input: missing; give input=PATH"),
        ({"input": "none.jpg"}, "input=none.jpg: no such file; give"),
        ({"input": "none/*.jpg"}, "input=none/.*: matches no file; check"),
        ({"show": ["masks", "mask"]}, "show=masks,mask: give one or more of masks, boundary, bases, attention"),
        ({"show": []}, "give one or more"),
        ({"score_threshold": 2}, "score_threshold=2: give a score from 0 to 1"),
        ({"score_threshold": "high"}, "score_threshold=high"),
        ({"batch_size": 0}, "batch_size=0: give a whole number of at least 1"),
        ({"max_side": 1.5}, "max_side=1.5: give .* or null"),
        ({"instance": -1}, "instance=-1: give a whole number of at least 0; 0 is the best"),
        ({"instance": None}, "instance=None: give a whole number"),
        ({"compare": "none.ckpt"}, "compare=none.ckpt: no such file; give"),
        ({"device": "gpu"}, "device=gpu: cannot be used"),
        ({"precision": 16}, "precision=16: give one of 32, bf16"),
        ({"compile": "no"}, "compile=no: give true or false"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    ckpt: Path, folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        predict(ckpt, folder / "a.jpg", tmp_path / "out", **changes)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_sources_without_images(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: no image in this folder.*below"):
        predict(ckpt, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ConfigError, match="matches 1 files, none of them an image"):
        predict(ckpt, f"{folder}/*.txt", tmp_path / "out")
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(DataError, match="bad.mp4: cannot be read as a video.*ffmpeg"):
        predict(ckpt, tmp_path / "bad.mp4", tmp_path / "out")


def test_a_model_without_a_boundary_basis(plain_ckpt: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no boundary basis; leave out boundary"):
        predict(plain_ckpt, folder / "a.jpg", tmp_path / "out", show=["masks", "boundary"])
    predict(plain_ckpt, folder / "a.jpg", tmp_path / "out", show=["bases", "attention"])
    assert (tmp_path / "out/a.png").is_file()
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(plain_ckpt.read_bytes())
    with pytest.raises(ConfigError, match=f"{plain_ckpt} and {copy} have no boundary basis; leave out boundary"):
        predict(plain_ckpt, folder / "a.jpg", tmp_path / "none", show="boundary", compare=str(copy))
    with pytest.raises(ConfigError, match="is the same file as ckpt; give another"):
        predict(
            plain_ckpt,
            folder / "a.jpg",
            tmp_path / "none",
            compare=f"{plain_ckpt.parent}/../{plain_ckpt.parent.name}/{plain_ckpt.name}",
        )
    assert not (tmp_path / "none").exists()


def test_the_command_line(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    arguments = (f"ckpt={ckpt}", f"input={folder}", "device=cpu", "show=[masks,bases]")
    done = run("predict", *arguments, cwd=tmp_path)
    assert "in 2 images, 1 skipped" in done.stdout and "outputs/predict/photos" in done.stdout
    assert "c.jpg: cannot be decoded" in done.stderr and "images/s" in done.stderr
    assert (tmp_path / "outputs/predict/photos/results.json").is_file()
    again = run("predict", *arguments, cwd=tmp_path, check=False)
    assert again.returncode == 1 and again.stdout == ""
    (line,) = again.stderr.splitlines()
    assert line.startswith("error: output=outputs/predict/photos: has files already")


def test_exit_code_2_if_nothing_could_be_read(ckpt: Path, folder: Path, tmp_path: Path) -> None:
    done = run("predict", f"ckpt={ckpt}", f"input={folder}/c.jpg", "progress=false", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [f"skipped {folder}/c.jpg", "error"]
    (tmp_path / "bad.mp4").write_text("no video")
    done = run("predict", f"ckpt={ckpt}", "input=bad.mp4", cwd=tmp_path, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.glob("outputs/predict/*/*")] == ["problems.json"]
