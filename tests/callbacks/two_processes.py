"""One of two processes that evaluate together: `python two_processes.py RANK FOLDER`.

Each has every second image, and the second one also an image of the first, as a padded sampler gives it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from b2inst.callbacks.evaluation import CocoEvaluation
from b2inst.metrics.boundary_f import BoundaryF
from b2inst.metrics.coco import CocoEvaluator


def boundaries_of(image_id: int) -> tuple[Tensor, Tensor]:
    """Probabilities and truth, (1, 20, 30), that differ from image to image."""
    generator = torch.Generator().manual_seed(image_id)
    return torch.rand(1, 20, 30, generator=generator), torch.rand(1, 20, 30, generator=generator) > 0.9


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    truth, records = json.loads((folder / "case.json").read_text())
    callback = CocoEvaluation(folder=str(folder / f"curves_{rank}"))
    callback.evaluator = CocoEvaluator(truth)
    callback.boundaries = BoundaryF()  # any one will do for how the counts of processes come together
    ids = [image["id"] for image in truth["images"]]
    for image_id in ids[rank::2] + ids[:rank]:
        callback.evaluator.update([image_id], [record for record in records if record["image_id"] == image_id])
        callback.boundaries.update(image_id, *boundaries_of(image_id))
    scored = []
    compute = callback.evaluator.compute
    callback.evaluator.compute = lambda: scored.append(1) or compute()
    logged = {}
    trainer = SimpleNamespace(world_size=2, is_global_zero=rank == 0, global_step=0, sanity_checking=False)
    callback.on_validation_epoch_end(trainer, SimpleNamespace(log_dict=logged.update))
    checkpoint = {}
    callback.on_save_checkpoint(trainer, None, checkpoint)
    result = {"scored": len(scored), "logged": logged, "checkpoint": checkpoint, "records": len(callback.records)}
    (folder / f"result_{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
