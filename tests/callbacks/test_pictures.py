from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from b2inst.callbacks import pictures
from b2inst.callbacks.evaluation import CocoEvaluation
from b2inst.callbacks.pictures import Pictures, draw_panels
from models import build

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def seen():
    """A batch of two images, the second padded, and what the validation step returns for it."""
    model = build.segmenter().eval()
    batch = build.batch([[(8, 8, 40, 40)], [(4, 4, 30, 30)]], sizes=[(64, 96), (50, 70)])
    with torch.no_grad():
        outputs = model(batch.images)
        return model, batch, {"outputs": outputs, "detections": model.detect(outputs, batch.images)}


def test_small_images_are_enlarged_and_padding_is_cut(seen):
    model, batch, outputs = seen
    panels = draw_panels(model, batch, outputs, 1, NAMES, threshold=0.5)
    assert list(panels) == [
        "image", "ground truth", "predictions", "bases", "boundary basis", "boundary target",
    ]  # fmt: skip
    assert {tuple(panel.shape) for panel in panels.values()} == {(3, 7 * 50, 7 * 70)}  # the least factor above 320
    assert torch.equal(panels["image"][:, ::7, ::7], batch.images.pixels[1, :, :50, :70])
    cells = panels["boundary target"][0, ::28, ::28]
    known = batch.targets.boundary_weight[1, :12, :17] > 0
    assert torch.equal(cells[:12, :17][known] / 255, batch.targets.boundary[1, :12, :17][known])


def test_images_that_are_large_enough_stay_as_they_are(seen, monkeypatch):
    monkeypatch.setattr(pictures, "MIN_SIDE", 64)
    model, batch, outputs = seen
    assert draw_panels(model, batch, outputs, 0, NAMES, threshold=0.5)["image"].shape == (3, 64, 96)


def _trainer(threshold):
    evaluation = CocoEvaluation()
    evaluation.threshold = threshold
    return SimpleNamespace(is_global_zero=True, callbacks=[evaluation], loggers=[], global_step=1)


@pytest.mark.parametrize(
    ("given", "of_the_pass", "drawn_at"), [(None, 0.6, 0.6), (0.2, 0.6, 0.2), (None, None, pictures.DEFAULT_THRESHOLD)]
)
def test_the_threshold_of_the_pass_is_drawn(seen, tmp_path, monkeypatch, given, of_the_pass, drawn_at):
    model, batch, outputs = seen
    thresholds = []
    draw = pictures.draw_panels
    monkeypatch.setattr(pictures, "draw_panels", lambda *a: [thresholds.append(a[5]), draw(*a)][1])
    callback = Pictures(str(tmp_path), images=3, score_threshold=given)
    module, trainer = SimpleNamespace(model=model, class_names=NAMES), _trainer(of_the_pass)
    for _ in range(2):  # passes; the second starts afresh
        callback.on_validation_epoch_start(trainer, module)
        for number in range(2):
            callback.on_validation_batch_end(trainer, module, outputs, batch, number)
        callback.on_validation_epoch_end(trainer, module)
    assert thresholds == [drawn_at] * 6
    files = sorted(tmp_path.iterdir())
    assert [file.name[:2] for file in files] == ["00", "01", "02"]
    assert Image.open(files[0]).width > 3 * 320
