from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from b2inst.data.augment import Resize, color, flip
from b2inst.data.boundary_target import BoundaryTarget
from b2inst.data.datamodule import B2InstDataModule, Split, resolve_root
from b2inst.data.errors import DataError
from data.make_coco import write_coco

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("B2INST_DATA", raising=False)


@pytest.fixture()
def root(tmp_path) -> Path:
    return write_coco(tmp_path / "set")


def _module(root: Path | str | None, **options) -> B2InstDataModule:
    return B2InstDataModule(root, **{"num_workers": 0, "batch_size": 2, **options})


# ------------------------------------------------------------------ finding files


def test_files_are_found_by_their_names(root):
    module = _module(root)
    assert module.val_annotations == root / "annotations" / "instances_val.json"
    assert module.images("train") == root / "train" and module.images("val") == root / "val"
    assert module.num_classes == 3
    assert module.class_names == ("ellipse", "polygon", "dot") and module.category_ids == (3, 7, 20)


def test_the_image_folder_has_the_suffix_of_the_annotations(root):
    (root / "annotations/instances_train.json").rename(root / "annotations/instances_train2017.json")
    with pytest.raises(DataError, match=r"train2017: is no folder.*data\.train\.images=DIR.*'train', 'val'"):
        _module(root).images("train")
    (root / "train").rename(root / "train2017")
    assert _module(root).images("train") == root / "train2017"


def test_each_path_can_be_given(root, tmp_path):
    shutil.move(root / "annotations/instances_val.json", tmp_path / "elsewhere.json")
    (root / "val").rename(root / "pictures")
    module = _module(root, val={"annotations": str(tmp_path / "elsewhere.json"), "images": "pictures"})
    assert module.val_annotations == tmp_path / "elsewhere.json" and module.images("val") == root / "pictures"
    assert len(module.dataset("val")) == 3
    absolute = _module(None, train=Split(root / "annotations/instances_train.json"))
    assert absolute.images("train") == root / "train"  # beside the annotations


def test_several_or_no_matches_are_listed(root):
    shutil.copy(root / "annotations/instances_val.json", root / "annotations/instances_val2.json")
    with pytest.raises(DataError, match=r"instances_val\.json, instances_val2\.json.*data\.val\.annotations=FILE"):
        _ = _module(root).val_annotations
    (root / "annotations/instances_train.json").unlink()
    with pytest.raises(DataError, match=r"instances_train\*\.json: no file matches.*data\.train\.annotations=FILE"):
        _module(root).annotations("train")


def test_a_missing_root_says_how_to_set_it(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere is no folder \(B2INST_DATA is not set\); set data\.root=DIR"):
        _module(tmp_path / "nowhere").setup()
    monkeypatch.setenv("B2INST_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"{tmp_path}/nowhere is no folder \(B2INST_DATA is {tmp_path}\)"):
        _module("nowhere").setup()


def test_the_variable_is_the_root_of_relative_roots(root, monkeypatch, tmp_path):
    assert resolve_root("set") == Path("set") and resolve_root(None) == Path(".")
    monkeypatch.setenv("B2INST_DATA", str(tmp_path))
    assert resolve_root("set") == root and _module("set").num_classes == 3
    assert resolve_root("/other") == Path("/other")
    assert resolve_root(root) == root
    monkeypatch.setenv("B2INST_DATA", "data")  # relative itself; the configurations already begin with it
    assert resolve_root("data/set") == Path("data/set") and resolve_root("set") == Path("data/set")


def test_unknown_keys_of_a_split_are_refused(root):
    with pytest.raises(TypeError, match="limits"):
        _module(root, train={"limits": 8})


def test_train_and_val_need_the_same_categories(root):
    path = root / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "spot"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"instances_train\.json: its categories differ.*\(20, 'dot'\).*\(20, 'spot'\)"):
        _module(root).setup("fit")


def test_evaluation_needs_no_training_split(root):
    (root / "annotations/instances_train.json").unlink()
    module = _module(root)
    module.setup("validate")
    assert module.num_classes == 3 and len(module.val_dataloader()) == 2


# ------------------------------------------------------------------ prepare


def _prepare(root: Path, calls: list[Path], **options) -> None:
    calls.append(root)
    write_coco(root, **options)


def test_prepare_makes_the_set_once(tmp_path):
    calls: list[Path] = []
    module = _module(tmp_path / "new", prepare=partial(_prepare, calls=calls, train_images=4))
    assert module.num_classes == 3  # even before Lightning calls prepare_data
    module.prepare_data()
    module.setup("fit")
    assert calls == [tmp_path / "new"] and len(module.dataset("train")) == 4


# ------------------------------------------------------------------ loaders


def test_batches_carry_boundary_ground_truth_after_the_transfer(root):
    module = _module(root, boundary_target=BoundaryTarget())
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert len(batch) == 2 and batch.targets.boundary is None
    batch = module.on_after_batch_transfer(batch, 0)
    n, _, height, width = batch.images.pixels.shape
    assert batch.targets.boundary.shape == batch.targets.boundary_weight.shape == (n, height // 4, width // 4)
    assert _module(root).on_after_batch_transfer(batch, 0) is batch


def test_training_is_shuffled_and_drops_what_is_left_over_but_not_all(root):
    module = _module(root, batch_size=4)
    module.setup("fit")
    ids = [batch.images.image_ids.tolist() for batch in module.train_dataloader()]
    assert [len(i) for i in ids] == [4]
    loader = module.train_dataloader()
    orders = {tuple(next(iter(loader)).images.image_ids.tolist()) for _ in range(10)}
    assert len(orders) > 1
    tiny = _module(root, train={"limit": 3}, batch_size=8)
    assert [len(batch) for batch in tiny.train_dataloader()] == [3]


@pytest.mark.parametrize("name", ["val_dataloader", "predict_dataloader"])
def test_validation_is_whole_and_in_order(root, name):
    module = _module(root, batch_size=8, val_batch_size=2)
    batches = list(getattr(module, name)())
    assert [batch.images.image_ids.tolist() for batch in batches] == [[1001, 1002], [1003]]


def test_skip_empty_and_limit_reach_the_data_set(root):
    module = _module(root, train={"skip_empty": True, "limit": 3})
    assert [image.id for image in module.dataset("train").images] == [1, 2, 3]


def test_class_counts_are_logged_before_the_first_step(root, caplog):
    with caplog.at_level(logging.INFO, logger="b2inst"):
        _module(root, train={"skip_empty": True}).setup("fit")
    assert "train: uses 4 of 6 images, 11 instances, 3 classes (ellipse 6, polygon 4, dot 1)" in caplog.text


def _sums(root: Path, workers: int, seed: int) -> list[int]:
    pl.seed_everything(seed, workers=True)
    augment = {"resize": Resize([48, 64], sampling="range"), "flip": flip(), "color": color()}
    module = _module(root, train_augment=augment, num_workers=workers)
    module.setup("fit")
    loader = module.train_dataloader()
    return [int(batch.images.pixels.sum()) for _ in range(2) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_reproduces_two_epochs(root, workers):
    first = _sums(root, workers, seed=1)
    assert first == _sums(root, workers, seed=1) and first != _sums(root, workers, seed=2)
    assert first[:3] != first[3:]


def test_the_data_set_can_be_sent_to_spawned_workers(root):
    module = _module(root, train_augment={"flip": flip(), "resize": Resize(32)})
    clone = pickle.loads(pickle.dumps(module.dataset("train")))
    assert clone[0].image.shape == (3, 32, 32)


class _Probe(pl.LightningModule):
    """Looks at what Lightning hands to a training step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, ...]] = []

    def training_step(self, batch, index):
        self.seen.append(tuple(batch.targets.boundary.shape))
        return self.weight * batch.targets.boundary.sum()

    def validation_step(self, batch, index):
        self.seen.append(tuple(batch.targets.boundary_weight.shape))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_runs_it(root, tmp_path):
    probe = _Probe()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(probe, datamodule=_module(root, boundary_target=BoundaryTarget(), val_batch_size=3))
    assert len(probe.seen) == 4 and all(shape[0] in (2, 3) for shape in probe.seen)


# ------------------------------------------------------------------ configurations


def _compose(data: str, augment: str, root: Path | None) -> B2InstDataModule:
    hydra = pytest.importorskip("hydra")
    from omegaconf import OmegaConf

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(overrides=[f"+data={data}", f"+augment={augment}", "+gt=boundary", "gt.stride=4"])
    OmegaConf.set_struct(config, False)
    if root is not None:
        config.data.root = str(root)
    config.data.num_workers = 0
    resolved = OmegaConf.to_container(config, resolve=True)
    return hydra.utils.instantiate(copy.deepcopy(resolved["data"]), _convert_="all")


@pytest.mark.parametrize("augment", sorted(path.stem for path in (CONF / "augment").glob("*.yaml")))
def test_every_augmentation_file_gives_batches(root, augment):
    module = _compose("custom", augment, root)
    module.setup("fit")
    for loader in (module.train_dataloader(), module.val_dataloader()):
        batch = module.on_after_batch_transfer(next(iter(loader)), 0)
        assert batch.targets.boundary.shape[0] == len(batch)


@pytest.mark.parametrize("data", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_every_data_file_composes(root, data, monkeypatch, tmp_path):
    module = _compose(data, "none", root if data == "custom" else None)
    assert isinstance(module.splits["train"], Split) and isinstance(module.boundary_target, BoundaryTarget)
    assert module.root == (root if data == "custom" else Path("data") / data)
    monkeypatch.setenv("B2INST_DATA", str(tmp_path))
    if data != "custom":
        assert _compose(data, "none", None).root == tmp_path / data


@pytest.mark.parametrize("path", sorted(CONF.glob("data/*.yaml")) + sorted(CONF.glob("augment/*.yaml")), ids=str)
def test_every_value_is_commented(path):
    for line in path.read_text().splitlines():
        key, _, value = line.strip().partition(": ")
        if value and not key.startswith("_") and not key.startswith("#"):
            assert "#" in value, f"{path.name}: {line}"


@pytest.mark.skipif("B2INST_TEST_DATA" not in os.environ, reason="B2INST_TEST_DATA names no folder with real sets")
@pytest.mark.parametrize(("data", "augment"), [("coco", "coco"), ("dsb2018", "crop"), ("pennfudan", "coco")])
def test_real_sets(data, augment, monkeypatch):
    base = Path(os.environ["B2INST_TEST_DATA"])
    if not (base / data).is_dir():
        pytest.skip(f"{data} is not in B2INST_TEST_DATA")
    monkeypatch.setenv("B2INST_DATA", str(base))
    module = _compose(data, augment, None)
    module.setup("fit")
    assert module.num_classes == (80 if data == "coco" else 1)
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert len(batch.targets) > 0 and 0 < batch.targets.boundary.mean() < 0.5
