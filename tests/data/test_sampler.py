"""Order, batches and random numbers of an epoch, by themselves and as Lightning runs them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from b2inst.data.augment import Resize, flip
from b2inst.data.datamodule import B2InstDataModule
from b2inst.data.sampler import Draw, EpochSampler, GroupedBatchSampler, ResumableLoader
from data.make_coco import write_coco

WIDE = [k % 3 == 0 for k in range(23)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


def test_each_epoch_has_its_own_order_which_the_seed_repeats():
    def orders(seed: int) -> list[list[int]]:
        sampler = EpochSampler(range(20), seed)
        return [list(sampler) for _ in range(3)]

    assert orders(1) == orders(1) and orders(1)[0] != orders(1)[1] and orders(1) != orders(2)
    assert all(sorted(order) == list(range(20)) for order in orders(1))
    sampler = EpochSampler(range(20), 1)
    sampler.set_epoch(2)
    assert list(sampler) == orders(1)[2]


def test_a_draw_names_all_randomness():
    seeds = {Draw(0, seed, epoch).sample_seed(id) for seed in (0, 1) for epoch in (0, 1) for id in (-1, 0, 1)}
    assert len(seeds) == 12
    assert Draw(3, 0, 5).sample_seed(9) == Draw(4, 0, 5).sample_seed(9)  # where the image is does not matter


@pytest.mark.parametrize("place", [(0, 1), (1, 2)])
def test_a_resumed_epoch_has_the_batches_of_the_interrupted_one(place):
    def batches(seed: int) -> GroupedBatchSampler:
        return GroupedBatchSampler(EpochSampler(WIDE, seed), 3, True, seed, WIDE, *place)

    whole = batches(5)
    epochs = []
    for epoch in range(3):
        whole.sampler.set_epoch(epoch)
        epochs.append(list(whole))
    interrupted = batches(5)
    for epoch in range(3):
        interrupted.sampler.set_epoch(epoch)
        draws = iter(interrupted)
        seen = [next(draws) for _ in range(2)] if epoch == 2 else list(draws)
    assert seen == epochs[2][:2]
    torch.manual_seed(99)  # another process has another history
    torch.randperm(7)
    resumed = batches(5)
    resumed.sampler.set_epoch(2)
    again = list(resumed)
    assert again == epochs[2] and again != epochs[1] and again[:2] == seen
    interrupted.sampler.set_epoch(2)  # the same process can begin the epoch anew, too
    assert list(interrupted) == epochs[2]
    resumed = batches(6)
    resumed.sampler.set_epoch(2)
    assert list(resumed) != epochs[2]


@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_are_of_one_group_except_at_the_end(drop_last):
    sampler = EpochSampler(WIDE, 0)
    sampler.set_epoch(3)
    batches = GroupedBatchSampler(sampler, 4, drop_last, seed=7, groups=WIDE)
    found = list(batches)
    assert len(found) == len(batches) == (5 if drop_last else 6)
    assert {(draw.seed, draw.epoch) for batch in found for draw in batch} == {(7, 3)}
    assert all(len({WIDE[draw.position] for draw in batch}) == 1 for batch in found[:4])  # 2 of 8, 3 of 15
    positions = Counter(draw.position for batch in found for draw in batch)
    assert set(positions.values()) == {1} and len(positions) == (20 if drop_last else 23)


def test_processes_have_equally_many_batches_and_share_no_image():
    parts = []
    for rank in range(2):
        batches = GroupedBatchSampler(EpochSampler(WIDE, 1), 3, True, 0, WIDE, rank, 2)
        assert len(list(batches)) == len(batches) == 3
        parts.append({draw.position for batch in batches for draw in batch})
    assert not parts[0] & parts[1]


class _Recorder(pl.LightningModule):
    """Writes down which images it gets, and their pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list] = {}

    def training_step(self, batch, index):
        images = batch.images
        row = (images.image_ids.tolist(), int(images.pixels.sum()), batch.targets.boxes.tolist())
        self.seen.setdefault(self.current_epoch, []).append(row)
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("groups", [None, [k % 4 == 1 for k in range(50)]])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_see_the_steps_of_one(processes, groups):
    def steps(rank: int, count: int) -> list[set[int]]:
        batches = GroupedBatchSampler(EpochSampler(range(50), 3), 12 // count, True, 0, groups, rank, count)
        found = [{draw.position for draw in batch} for batch in batches]
        assert len(found) == len(batches)
        return found

    parts = [steps(rank, processes) for rank in range(processes)]
    assert [set().union(*step) for step in zip(*parts, strict=True)] == steps(0, 1)


def test_fewer_images_than_processes_are_repeated():
    def positions(images: int, rank: int) -> list[list[int]]:
        batches = GroupedBatchSampler(EpochSampler(range(images), 0), 2, False, 0, None, rank, 3)
        found = [[draw.position for draw in batch] for batch in batches]
        assert len(found) == len(batches)
        return found

    assert [positions(1, rank) for rank in range(3)] == [[[0]]] * 3
    two = [positions(2, rank)[0][0] for rank in range(3)]
    assert sorted(two) in ([0, 0, 1], [0, 1, 1])
    assert sorted(sum((positions(4, rank)[0] for rank in range(3)), [])) != [0, 1, 2, 3]  # one waits for the next epoch
    assert all(len(positions(4, rank)[0]) == 1 for rank in range(3))


def _fit(root: Path, folder: Path, epochs: int, workers: int, strategy: str, resume: Path | None = None) -> dict:
    pl.seed_everything(5, workers=True, verbose=False)
    augment = {"resize": Resize([48, 56, 64], sampling="range"), "flip": flip()}
    data = B2InstDataModule(root, train_augment=augment, batch_size=2, num_workers=workers, group_by_aspect=True)
    checkpoint = pl.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, strategy=strategy, logger=False, callbacks=[checkpoint],
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
        use_distributed_sampler=False,
    )  # fmt: skip
    recorder = _Recorder()
    trainer.fit(recorder, datamodule=data, ckpt_path=resume)
    sampler = trainer.train_dataloader.batch_sampler
    assert isinstance(sampler, GroupedBatchSampler)
    assert isinstance(sampler.sampler, EpochSampler)
    return recorder.seen


@pytest.mark.parametrize(("workers", "strategy"), [(0, "auto"), (2, "auto"), (2, "ddp")])
def test_a_resumed_epoch_sees_what_the_interrupted_one_would_have(root, tmp_path, monkeypatch, workers, strategy):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # so that it is restored
    whole = _fit(root, tmp_path / "whole", 4, workers, strategy)
    assert len(whole) == 4 and all(len(rows) == 3 for rows in whole.values())
    assert len({str(sorted(rows)) for rows in whole.values()}) == 4
    resumed = _fit(root, tmp_path / "rest", 4, workers, strategy, resume=tmp_path / "whole" / "epoch=1.ckpt")
    assert sorted(resumed) == [2, 3]
    assert resumed == {epoch: whole[epoch] for epoch in (2, 3)}


class Listed:
    """Positions, and which were loaded in this process."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, draw: Draw) -> int:
        self.loaded.append(draw.position)
        return draw.position


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_loads_nothing_of_what_is_done(workers: int):
    def loader() -> ResumableLoader:
        dataset = Listed()
        sampler = GroupedBatchSampler(EpochSampler(dataset, 0), 2, True, 0)
        return ResumableLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=list)

    whole, resumed = loader(), loader()
    wanted = [list(whole) for _ in range(3)]
    resumed.load_state_dict({"batches": 4})
    assert [list(resumed), list(resumed)] == [wanted[0][4:], wanted[1]]
    assert resumed.state_dict() == {"batches": 6}
    if workers == 0:
        assert resumed.dataset.loaded == whole.dataset.loaded[8:24]
    resumed.load_state_dict({"batches": 4})
    iter(resumed)  # Lightning makes an iterator that it does not use
    assert resumed.state_dict() == {"batches": 4}, "a checkpoint before the first batch would begin the epoch anew"
    assert list(resumed) == wanted[2] and resumed.state_dict() == {"batches": 6} and resumed._skip == 0
