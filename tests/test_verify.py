"""The entry point that examines a data set: exit code, table, JSON and contact sheet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from rich.console import Console

from b2inst.config import ConfigError, build, plain
from b2inst.data.errors import DataError
from b2inst.paths import config_dir
from b2inst.verify import verify
from b2inst.viz_sheet import THUMBNAIL, Sheet, contact_sheet
from data.make_coco import COLORS, write_coco
from toy import run


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "set")


def _config(root: Path | str, output: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        settings = ["data=custom", f"data.root={root}", f"output={output}", "progress=false", "threads=2"]
        return plain(compose("verify", [*settings, *overrides]))


def _edit(root: Path, split: str, section: str, index: int, **values: Any) -> None:
    path = root / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    content[section][index].update(values)
    path.write_text(json.dumps(content))


def _text(report) -> str:
    console = Console(width=240, highlight=False, file=open(os.devnull, "w"), record=True)
    report.show(console)
    return console.export_text()


def test_a_sound_set(root: Path, tmp_path: Path) -> None:
    report = verify(_config(root, tmp_path / "out"))
    content = json.loads((tmp_path / "out/verify.json").read_text())
    assert content["errors"] == content["warnings"] == 0 and content["problems"] == []
    assert content["splits"]["train"]["counts"]["images"] == 6 and content["splits"]["val"]["counts"]["images"] == 3
    text = _text(report)
    assert "0 errors, 0 warnings" in text and "1 images without annotations" in text
    assert [path.name for path in report.files] == ["contact_sheet.png", "verify.json"]


def test_problems_of_both_splits_are_in_table_and_json(root: Path, tmp_path: Path) -> None:
    _edit(root, "train", "annotations", 0, category_id=4)
    _edit(root, "val", "annotations", 0, category_id=4)
    _edit(root, "val", "annotations", 1, bbox=[0, 0, 900, 5])
    (root / "val/001002.png").unlink()
    report = verify(_config(root, tmp_path / "out"))
    content = json.loads((tmp_path / "out/verify.json").read_text())
    assert (content["errors"], content["warnings"]) == (3, 1)
    found = {problem["kind"]: (problem["severity"], problem["counts"]) for problem in content["problems"]}
    assert found == {
        "unknown category": ("error", {"train": 1, "val": 1}),
        "missing image file": ("error", {"train": 0, "val": 1}),
        "outside of the image": ("warning", {"train": 0, "val": 1}),
    }
    (row,) = [line for line in _text(report).splitlines() if "outside of the image" in line]
    assert "instances_val.json: annotations[1] (id 10020): key 'bbox' reaches" in row


def test_the_worst_images_come_first(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _edit(root, "train", "annotations", 0, category_id=4)
    for index in (0, 1):
        _edit(root, "val", "annotations", index, bbox=[0, 0, 900, 5])
    drawn: list[Sheet] = []
    monkeypatch.setattr("b2inst.verify.contact_sheet", lambda s, n: drawn.extend(s) or contact_sheet(s, n))
    verify(_config(root, tmp_path / "out", "sheet=4"))
    assert [sheet.caption for sheet in drawn[:2]] == [
        "val 001001.png - outside of the image 2", "train 000001.png - unknown category 1",
    ]  # fmt: skip
    assert len(drawn) == 4
    with Image.open(tmp_path / "out/contact_sheet.png") as picture:
        assert picture.width > 4 * THUMBNAIL


def test_what_is_missing_as_a_whole_is_reported_and_the_rest_examined(root: Path, tmp_path: Path) -> None:
    (root / "annotations/instances_train.json").unlink()
    (root / "val").rename(root / "pictures")
    report = verify(_config(root, tmp_path / "out"))
    assert report.kinds() == ["annotation file", "image folder"]
    assert report.splits["val"].counts["images"] == 3 and report.total("error") == 2
    report = verify(_config(tmp_path / "nowhere", tmp_path / "out"))
    assert report.splits["train"].tally.counts == {"annotation file": 1}
    assert "data.root=DIR" in report.examples("annotation file")[0].remedy


def test_a_file_without_annotations_is_an_error_where_empty_images_are_left_out(root: Path, tmp_path: Path) -> None:
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    (root / "annotations/instances_val.json").write_text(json.dumps({**content, "annotations": []}))
    config = _config(root, tmp_path / "o", "data.val.images=train")
    report = verify(config)
    (problem,) = report.examples("no annotation")
    assert report.total("error") == 1 and problem.where == str(path)
    with pytest.raises(DataError, match="no image is left.*skip_empty=true"):
        build(config["data"]).dataset("train")


def test_categories_of_the_splits_are_compared(root: Path, tmp_path: Path) -> None:
    _edit(root, "val", "categories", 0, name="spot")
    assert verify(_config(root, tmp_path / "out")).kinds() == ["categories differ"]


def test_splits_may_share_a_folder(root: Path, tmp_path: Path) -> None:
    for path in (root / "val").iterdir():
        path.rename(root / "train" / path.name)
    (root / "train/extra.jpg").touch()
    report = verify(_config(root, tmp_path / "out", "data.val.images=train"))
    assert report.kinds() == ["image without a record"] and report.total("warning") == 1


def test_without_decoding_files_are_only_looked_for(root: Path, tmp_path: Path) -> None:
    (root / "train/000001.png").write_bytes(b"")
    (root / "train/000002.png").unlink()
    report = verify(_config(root, tmp_path / "out", "decode=false", "sheet=0"))
    assert report.kinds() == ["missing image file"]
    assert [path.name for path in report.files] == ["verify.json"]


def test_the_sheet_shows_masks_on_images_and_gray_where_there_is_none(root: Path) -> None:
    content = json.loads((root / "annotations/instances_train.json").read_text())
    records = [record for record in content["annotations"] if record["image_id"] == 3]
    sheets = [Sheet(str(i), path, (64, 96), records) for i, path in enumerate([root / "train/000003.png", root / "no"])]
    picture = contact_sheet(sheets, {3: "ellipse", 20: "dot"}, columns=1)
    height = picture.shape[1] // 2
    x, y, w, h = (side * THUMBNAIL // 96 for side in records[0]["bbox"])
    head = height - 64 * THUMBNAIL // 96
    center = picture[:, head + y + h // 4, 4 + x + w // 2].float()
    missing = picture[:, height + head + y + h // 4, 4 + x + w // 2].float()
    assert (center - missing).abs().max() > 20  # the color of the ellipse below the same mask
    assert (picture[:, height + head + 5, 8] == 128).all()
    assert (center - torch.tensor(COLORS[3])).abs().max() < 130


def test_the_exit_code_says_whether_there_are_errors(root: Path, tmp_path: Path) -> None:
    arguments = ("data=custom", f"data.root={root}", "progress=false", "threads=1")
    done = run("verify", *arguments, cwd=tmp_path)
    assert "0 errors, 0 warnings" in done.stdout and (tmp_path / "outputs/verify/custom/verify.json").is_file()
    (root / "train/000001.png").write_bytes(b"")
    done = run("verify", *arguments, "output=o", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "damaged image file" in done.stdout and "1 error," in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "outputs", "set"]


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start tests with it ignored
from b2inst import verify
from b2inst.data import scan_images
def read(path, size):
    print("begun", flush=True)
    time.sleep(1)
scan_images.read_image = read
verify.main()
"""


def test_ctrl_c_ends_with_words(root: Path, tmp_path: Path) -> None:
    arguments = ["data=custom", f"data.root={root}", "threads=2"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], cwd=tmp_path, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=240)
    assert child.returncode == 130
    assert "Traceback" not in err and err.endswith("stopped\n")
    assert not (tmp_path / "outputs").exists()


def test_categories_of_a_large_list_are_one_row(root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        content["categories"] += [{"id": 100 + n, "name": f"never {n}"} for n in range(77)]
        path.write_text(json.dumps(content))
    report = verify(_config(root, tmp_path / "out"))
    assert report.kinds() == ["unused category"] and report.total("warning") == 2
    rows = [line for line in _text(report).splitlines() if "never" in line]
    assert "unused category" in rows[0] and "77 of 80 have no annotation" in " ".join(rows) and len(rows) <= 4


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("splits=[test]", r"splits=\['test'\]: give a list of train and val"),
        ("splits=val", "splits=val: give a list"),
        ("threads=-1", "threads=-1: give how many, from 1 on"),
        ("sheet=-1", "sheet=-1: give how many"),
    ],
)
def test_settings_are_checked(root: Path, tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        verify(_config(root, tmp_path / "out", override))
