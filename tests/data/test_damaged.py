"""A damaged image in training is left out, named and counted; too many end the run; validation bears none."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from b2inst.data.coco import CocoDataset, CocoIndex
from b2inst.data.damaged import Damaged, DamageLimit, split_damaged
from b2inst.data.datamodule import B2InstDataModule
from b2inst.data.errors import DataError
from data.make_coco import write_coco


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "set", train_images=8)


def _damage(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:60])


def _module(root: Path, **options) -> B2InstDataModule:
    return B2InstDataModule(root, **{"num_workers": 0, "batch_size": 4, "persistent_workers": False, **options})


class _Counter(pl.LightningModule):
    """Notes the ids that reach the training step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[list[int]] = []

    def training_step(self, batch, index):
        self.batches.append(batch.images.image_ids.tolist())
        return self.weight * 1.0

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def _fit(module: B2InstDataModule, epochs: int, folder: Path) -> list[list[int]]:
    model = _Counter()
    pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
    ).fit(model, datamodule=module)  # fmt: skip
    return model.batches


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_leaves_it_out_and_counts_it_once(root, tmp_path, caplog, workers):
    _damage(root, "train/000003.png")
    module = _module(root, max_damaged=0.2, num_workers=workers)
    with caplog.at_level(logging.WARNING, logger="b2inst"):
        batches = _fit(module, 2, tmp_path)
    assert sorted(map(len, batches[:2])) == sorted(map(len, batches[2:])) == [3, 4]
    assert sorted(sum(batches[:2], [])) == [1, 2, 4, 5, 6, 7, 8]
    assert len(module.damage) == 1
    assert caplog.text.count("000003.png: cannot be decoded") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_of_one_has_the_next_image_in_its_place(root, tmp_path, workers):
    _damage(root, "train/000003.png", "train/000004.png")
    module = _module(root, max_damaged=0.3, num_workers=workers, batch_size=1)
    batches = _fit(module, 1, tmp_path)
    assert sorted(sum(batches, [])) == [1, 2, 5, 5, 5, 6, 7, 8] and len(module.damage) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_limit_end_the_run(root, tmp_path, workers):
    _damage(root, "train/000003.png", "train/000004.png")
    module = _module(root, max_damaged=0.2, num_workers=workers)
    with pytest.raises(DataError, match=r"2 of 8 training images cannot be used, data.max_damaged=0.2 allows 1;.*png"):
        _fit(module, 3, tmp_path)


def test_none_is_allowed_with_0(root, tmp_path):
    _damage(root, "train/000003.png")
    with pytest.raises(DataError, match=r"000003\.png: cannot be decoded"):
        _fit(_module(root, max_damaged=0), 1, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_bears_none(root, tmp_path, workers):
    _damage(root, "val/001002.png")
    with pytest.raises(DataError, match=r"001002\.png: cannot be decoded"):
        _fit(_module(root, max_damaged=1, num_workers=workers), 1, tmp_path)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_the_limit_is_a_share(root, share):
    with pytest.raises(ValueError, match=r"max_damaged=.*from 0 to 1"):
        _module(root, max_damaged=share)


def test_an_empty_batch_is_an_error():
    assert split_damaged([1, Damaged("a", 7), 2]) == ([1, 2], ("a",))
    assert split_damaged([Damaged("a"), Damaged("b", 7), Damaged("c", 8)]) == ([7], ("a", "b", "c"))
    with pytest.raises(DataError, match=r"none of the 2 images(.|\n)*one\.png(.|\n)*two\.png"):
        split_damaged([Damaged("one.png"), Damaged("two.png")])


def test_the_limit_counts_files_and_not_events():
    limit = DamageLimit(0.5, 4)
    for _ in range(3):
        limit.add(["a"])
    limit.add(["b", "a"])
    assert len(limit) == 2
    with pytest.raises(DataError, match="3 of 4"):
        limit.add(["c"])


def test_the_data_set_raises_unless_it_is_told_to_skip(root):
    _damage(root, "train/000001.png")
    index = CocoIndex.read(root / "annotations/instances_train.json")
    with pytest.raises(DataError, match="cannot be decoded"):
        CocoDataset(index, root / "train")[0]
    found = CocoDataset(index, root / "train", skip_damaged=True)[0]
    assert isinstance(found, Damaged) and str(root / "train/000001.png") in found.message


def test_damage_travels_with_the_batch(root):
    _damage(root, "train/000001.png")
    module = _module(root, max_damaged=1, batch_size=8)
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert len(batch) == 7 and len(batch.damaged) == 1 and batch.to("cpu").damaged == batch.damaged


# ------------------------------------------------------------------ before the first step


def test_missing_files_are_seen_before_the_first_step(root, caplog):
    (root / "train/000002.png").unlink()
    with caplog.at_level(logging.WARNING, logger="b2inst"):
        _module(root, max_damaged=0.2).setup("fit")
    assert "missing image file (1 of 8)" in caplog.text and "000002.png" in caplog.text
    with pytest.raises(DataError) as error:
        _module(root).setup("fit")
    first, line, command = str(error.value).splitlines()
    assert "missing image file (1 of 8), first" in line and "000002.png" in line
    assert command.endswith(f"python -m b2inst.verify data=custom data.root={root}")


def test_missing_validation_files_are_an_error(root):
    (root / "val/001001.png").unlink()
    with pytest.raises(DataError, match=r"missing image file \(1 of 3\)"):
        _module(root, max_damaged=1).setup("validate")


def _edit(root: Path, split: str, **values: Any) -> None:
    path = root / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    content["annotations"][0].update(values)
    path.write_text(json.dumps(content))


def test_all_kinds_of_both_splits_are_told_at_once(root):
    _edit(root, "val", area="x")
    _edit(root, "train", category_id=4)
    (root / "val/001002.png").unlink()
    for number in (2, 3):
        (root / f"train/00000{number}.png").unlink()
    with pytest.raises(DataError) as error:
        _module(root, max_damaged=0.1).setup("fit")
    val, malformed, lost, train, unknown, missing, command = str(error.value).splitlines()
    assert val == f"{root / 'annotations/instances_val.json'} cannot be used:"
    assert malformed.startswith("  malformed record (1), first") and "key 'area' is 'x'" in malformed
    assert lost.startswith(f"  missing image file (1), first {root / 'val/001002.png'}: does not exist")
    assert train == f"{root / 'annotations/instances_train.json'} cannot be used:"
    assert unknown.startswith("  unknown category (1), first") and missing.startswith("  missing image file (2), first")
    assert command.startswith("for all of it")


def test_what_is_borne_is_not_among_the_errors(root):
    _edit(root, "train", area="x")
    (root / "train/000002.png").unlink()
    with pytest.raises(DataError) as error:
        _module(root, max_damaged=0.2).setup("fit")
    assert "malformed record (1)" in str(error.value) and "missing" not in str(error.value)


def test_files_that_are_missing_in_both_splits_are_told_at_once(root):
    for name in ("train/000002.png", "val/001001.png"):
        (root / name).unlink()
    with pytest.raises(DataError) as error:
        _module(root).setup("fit")
    lines = str(error.value).splitlines()
    assert lines[::2] == [f"{root / 'train'} cannot be used:", f"{root / 'val'} cannot be used:", lines[-1]]
    assert "(1 of 8)" in lines[1] and "(1 of 3)" in lines[3] and len(lines) == 5


def test_other_problems_are_told_beside_a_missing_folder_and_different_categories(root):
    _edit(root, "train", area="x")
    (root / "train").rename(root / "elsewhere")
    path = root / "annotations/instances_val.json"
    path.write_text(path.read_text().replace('"dot"', '"point"'))
    with pytest.raises(DataError) as error:
        _module(root).setup("fit")
    kinds = [line.split(" (1), first")[0].strip() for line in str(error.value).splitlines()[1:-1]]
    assert kinds == ["image folder", "categories differ", "malformed record"]


def test_a_validation_without_a_training_split_is_explained(root):
    _edit(root, "val", area="x")
    (root / "annotations/instances_train.json").unlink()
    with pytest.raises(DataError, match=r"malformed record \(1\)") as error:
        _module(root).setup("validate")
    assert len(str(error.value).splitlines()) == 3


def test_broken_annotations_are_explained_with_one_line_for_each_kind(root):
    path = root / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"][:3]:
        annotation["category_id"] = 4
    content["annotations"][4]["segmentation"] = [[1, 2, 3, 4]]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        _module(root, val={"annotations": "annotations/instances_val.json"}).setup("validate")
    head, *lines, command = str(error.value).splitlines()
    assert head == f"{path} cannot be used:"
    assert [line.split(", first")[0].strip() for line in lines] == [
        "unknown category (3)",
        "polygon with < 3 points (1)",
    ]
    assert "annotations[0] (id 10010): key 'category_id' is 4" in lines[0]
    assert "data.val.annotations=annotations/instances_val.json" in command
