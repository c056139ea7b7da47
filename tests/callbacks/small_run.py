"""A tiny module on real batches, whose loss or gradients are not finite where the file name says so.

As a program one rank of two, which trains twice: `python small_run.py FOLDER`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn

from b2inst.callbacks.ema import EMA
from b2inst.callbacks.finite import FiniteSteps, NonFiniteError
from b2inst.structures import Batch, ImageBatch


def batch(name: str) -> Batch:
    """One image, its pixels made from the name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    size = torch.tensor([[8, 8]] * 4)
    return Batch(ImageBatch(pixels, size, size, torch.arange(4), (name,)))


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


class SmallModule(pl.LightningModule):
    """Convolution, batch norm with its running statistics, linear layer."""

    def __init__(self, optimizer: str = "AdamW") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.save_hyperparameters({"config": {}})
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
        self.optimizer = optimizer
        self.reached: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        name = batch.images.file_names[0]
        self.reached.append(name)
        loss = self.net(batch.images.pixels.float() / 255).float().square().mean()
        if name.startswith("gradient"):
            return _NaNGradient.apply(loss)
        if name.startswith("added"):
            return loss + torch.nan  # the gradient is finite, so in DDP no other process sees anything
        return loss * {"nan": torch.nan, "inf": torch.inf}.get(name[:3], 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = {"AdamW": {}, "SGD": {"momentum": 0.9, "weight_decay": 0.1}}[self.optimizer]
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=0.01, **options)


def precision(name: str) -> dict:
    """Arguments of the trainer; Lightning itself takes bfloat16 where 16-mixed is asked for on a CPU."""
    if name != "16-mixed":
        return {"precision": name}
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))]}


def fit(
    folder: Path, names: list[str], *, optimizer: str = "AdamW", kind: str = "32-true", accumulate: int = 1,
    max_in_row: int = 10, keep: int = 3, devices: int = 1, guard: bool = True,
) -> tuple[SmallModule, pl.Trainer, FiniteSteps]:  # fmt: skip
    """Train on these files, one a step and device."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch")
    finite = FiniteSteps(str(folder), max_in_row, keep)
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=1, logger=False,
        accumulate_grad_batches=accumulate, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*[finite] * guard, EMA(decay=0.5)], default_root_dir=folder,
        gradient_clip_val=1.0, use_distributed_sampler=False, **precision(kind),
    )  # fmt: skip
    module = SmallModule(optimizer)
    rank = trainer.global_rank
    batches = [batch(name) for name in names[rank::devices]]
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return module, trainer, finite


def state(module: SmallModule, trainer: pl.Trainer) -> dict[str, Tensor]:
    """Everything that a step changes."""
    values = {f"average.{k}": v for k, v in trainer.callbacks[-1]._average_model.state_dict().items()}
    values |= {f"net.{k}": v for k, v in module.net.state_dict().items()}
    for number, slot in trainer.optimizers[0].state_dict()["state"].items():
        values |= {f"optimizer.{number}.{k}": torch.as_tensor(v) for k, v in slot.items()}
    return values


SKIPPING = ["a.jpg", "b.jpg", "c.jpg", "nan.jpg", "d.jpg", "e.jpg", "f.jpg", "added.jpg"]  # by turns of the two ranks
STOPPING = ["a.jpg", "nan3.jpg", "nan4.jpg", "b.jpg", "c.jpg", "d.jpg"]


def main(root: Path) -> None:
    module, trainer, finite = fit(root / "kept", SKIPPING, devices=2)
    content = {"state": state(module, trainer), "skipped": finite.skipped}
    try:
        fit(root / "stopped", STOPPING, devices=2, max_in_row=2)
    except NonFiniteError as error:
        content["stopped"] = str(error)
    torch.save(content, root / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
