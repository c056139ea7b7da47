"""What two processes learn together from halves of batches: `python two_ranks.py RANK FOLDER`.

`learn` is also what one process does with the whole batches; the test compares the two.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from b2inst.losses.bce import BinaryCrossEntropy
from b2inst.losses.bf1 import BF1
from b2inst.losses.dice import Dice
from b2inst.losses.edge_agreement import EdgeAgreement
from b2inst.losses.kervadec import Kervadec
from b2inst.models.assembly.blend import AttentionBlend
from b2inst.models.assembly.dynamic import DynamicConvolutions
from b2inst.models.assembly.linear import LinearCombination
from b2inst.models.assembly.quadrant import QuadrantCombination
from b2inst.models.backbone import ResNet
from b2inst.models.basis import BasisHead, SemanticHead
from b2inst.models.boundary import GlobalBoundary, InstanceBoundary, NoBoundary, UnsupervisedBoundary
from b2inst.models.fpn_yolact import YolactFPN
from b2inst.models.protonet_yolact import YolactProtonet
from b2inst.ops.dist import reduce_mean
from b2inst.structures import Batch, ImageBatch
from models import build

TERMS = {"bce": BinaryCrossEntropy, "dice": Dice, "bf1": BF1, "kervadec": Kervadec, "edge": EdgeAgreement}
# Group norm: batch norm sees the images of its own process only.
PARTS = {
    "basis": partial(BasisHead, channels=32, num_convs=1, norm="gn"),
    "semantic": partial(SemanticHead, channels=32, norm="gn"),
}


def fcos(boundary, mode, normalizer, assembly, **options):
    """With one of the normalizers of the class loss."""
    return build.segmenter(boundary, mode, detector={"normalizer": normalizer}, assembly=assembly, **PARTS, **options)


VARIANTS = {
    "global": partial(fcos, GlobalBoundary(), "iou_boundary", "fg", AttentionBlend(attention_size=7, mask_size=28)),
    "instance": partial(fcos, InstanceBoundary(), "iou", "moving_fg", LinearCombination(mask_size=28)),
    "none": partial(fcos, NoBoundary(), "fcn_iou", "all", DynamicConvolutions(mask_size=28)),
    "unsupervised": partial(  # with a limit that leaves nothing out, as each process draws on its own
        fcos, UnsupervisedBoundary(), "boundary", "fg", QuadrantCombination(mask_size=28), mask_positives=1000
    ),
    # Group norm here too: a little rounding must not grow until another anchor is the hardest.
    "yolact": partial(
        build.yolact, InstanceBoundary(), "iou", fpn=partial(YolactFPN, channels=64, norm="gn"),
        detector={"sizes_of_interest": (32, 64, 128, 256), "norm": "gn"},
        basis=partial(YolactProtonet, channels=32, num_convs=1, norm="gn"),
    ),
}  # fmt: skip
LARGE, WIDE, SMALL = (4, 4, 40, 44), (20, 8, 92, 56), (50, 20, 70, 40)
EMPTY = [[LARGE, WIDE], [], [SMALL], []]  # the second process has every second image, and so no instance
CASES = {
    "a process without instances": (EMPTY, False),
    "a process with crowds alone": (EMPTY, True),
    "one instance in all": ([[SMALL], [], [], []], False),
    "no instances": ([[], [], [], []], False),
    "uneven": ([[LARGE], [WIDE], [LARGE, SMALL, WIDE], []], False),
}


class Losses(nn.Module):
    """A segmenter whose forward pass ends with the losses, as DDP wants it."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.model = VARIANTS[variant](
            score={"max_positives": 1000}, backbone=ResNet(18, norm="gn", freeze_at=0, weights=None),
            losses={name: term() for name, term in TERMS.items()},
        )  # fmt: skip

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.model.losses(self.model(batch.images), batch)[0]


def batch(case: str) -> Batch:
    """The images of all processes."""
    boxes, crowds = CASES[case]
    made = build.batch(boxes)
    if crowds:
        crowd, weight = made.targets.crowd.clone(), made.targets.boundary_weight.clone()
        crowd[1::2], weight[1::2] = True, 0.0
        made = replace(made, targets=replace(made.targets, crowd=crowd, boundary_weight=weight))
    return made


def part(whole: Batch, rank: int) -> Batch:
    """Every second image."""
    images, targets = whole.images, whole.targets
    own = targets.image_index % 2 == rank
    names = ("pixels", "sizes", "original_sizes", "image_ids", "file_names")
    return Batch(
        ImageBatch(*(getattr(images, name)[rank::2] for name in names)),
        replace(
            targets, boxes=targets.boxes[own], labels=targets.labels[own], masks=targets.masks[own],
            image_index=targets.image_index[own] // 2, crowd=targets.crowd[rank::2],
            boundary=targets.boundary[rank::2], boundary_weight=targets.boundary_weight[rank::2],
        ),
    )  # fmt: skip


@torch.backends.mkldnn.flags(enabled=False)
def learn(variant: str, rank: int | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """One step of SGD on each case, all from the same weights, or different rounding would grow over them.

    Without oneDNN, which has other convolutions for two images than for four on some processors: they round
    differently, and what is binarized for the targets of the scores then flips here and there.

    Returns:
        losses (mean over the processes), gradients, and weights after the last step, by what they are of.
    """
    torch.manual_seed(0)
    module = Losses(variant).train()
    run = module if rank is None else DistributedDataParallel(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.002)
    start = [p.detach().clone() for p in module.parameters()]
    found: dict[str, dict[str, torch.Tensor]] = {"losses": {}, "gradients": {}, "weights": {}}
    for case in CASES:
        whole = batch(case)
        with torch.no_grad():
            for p, value in zip(module.parameters(), start, strict=True):
                p.copy_(value)
        losses = run(whole if rank is None else part(whole, rank))
        optimizer.zero_grad()
        module.model.total_loss(losses).backward()
        optimizer.step()
        found["losses"] |= {f"{case}: {name}": reduce_mean(value.detach()) for name, value in losses.items()}
        found["gradients"] |= {f"{case}: {name}": p.grad.clone() for name, p in module.named_parameters()}
    found["weights"] = module.state_dict()
    return found


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({variant: learn(variant, rank) for variant in VARIANTS}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
