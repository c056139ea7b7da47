"""The published models, built from their configurations, have AdelaiDet's entries exactly."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn import functional as F

from b2inst.config import CHECKPOINT_TARGETS, build, plain
from b2inst.interop.adelaidet import export_adelaidet, load_adelaidet
from b2inst.interop.names import BOTTOM_UP
from b2inst.interop.variant import variant_of
from b2inst.models.segmenter import Segmenter
from b2inst.paths import config_dir
from interop.keys import expected_entries
from interop.small import weights


def published(experiment: str, *overrides: str) -> Segmenter:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        settings = [f"experiment={experiment}", "name=x", "output=x", "model.num_classes=80", *overrides]
        return build(plain(compose("train", settings))["model"], CHECKPOINT_TARGETS)


@pytest.mark.parametrize("recipe", ["coco_1x", "demo"])
def test_blendmask_r50_exports_the_379_entries(recipe: str) -> None:
    exported = export_adelaidet(published("blendmask_r50_1x", f"recipe={recipe}"))
    found = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in exported.items()}
    assert len(found) == 379
    assert found == expected_entries()


def test_sizes_of_blendmask_r50() -> None:
    model = published("blendmask_r50_1x")
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count["backbone"] == 23_454_912
    assert count["fpn"] == 131_328 + 262_400 + 524_544 + 3 * 590_080 + 1_180_160
    assert count["detector"] == 4_920_661 + 1_807_120
    assert count["basis"] == 885_504 + 591_364
    assert count["semantic"] == 453_329
    assert sum(count.values()) == 35_981_562
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 35_759_162


def condinst_entries() -> dict[str, tuple[int, ...]]:
    """Shapes of CondInst R-50's entries by key, from those of BlendMask R-50 and what is said of the difference."""
    parts = {"basis_module.tower.4": "mask_branch.tower.3", "basis_module.": "mask_branch."}
    entries = {}
    for key, (shape, _) in expected_entries().items():
        if not key.startswith(("basis_module.seg_head", "basis_module.tower.5", "top_layer")):
            old = next((part for part in parts if key.startswith(part)), "")
            entries[parts.get(old, "") + key.removeprefix(old)] = shape
    entries |= {"mask_branch.tower.4.weight": (8, 128, 1, 1), "mask_branch.tower.4.bias": (8,)}
    entries |= {"controller.weight": (169, 256, 3, 3), "controller.bias": (169,)}
    entries |= {f"proposal_generator.fcos_head.scales.{i}.scale": (1,) for i in range(5)}
    return entries | {"mask_head.sizes_of_interest": (5,), "mask_head._iter": (1,)}


def test_condinst_r50_takes_the_372_entries() -> None:
    entries = condinst_entries()
    assert len(entries) == 372 and sum(torch.Size(shape).numel() for shape in entries.values()) == 34_219_224
    model = published("condinst_r50_1x")
    shapes = {key: tuple(value.shape) for key, value in export_adelaidet(model).items()}
    buffers = {"mask_head.sizes_of_interest", "mask_head._iter"}
    assert shapes == {key: shape for key, shape in entries.items() if key not in buffers}
    counters = {key: torch.zeros(entries[key]) for key in buffers}
    report = load_adelaidet(model, weights(model) | counters)
    assert set(report.left_over) == buffers and report.fresh == {}


MODELS = {
    "blendmask_r50_1x": (379, 36_090_115, []),
    "blendmask_r101_3x": (634, 55_134_467, []),
    "blendmask_550_r50_3x": (351, 32_399_106, []),
    "condinst_r50_1x": (370, 34_219_218, []),
    "fcos": (324, 32_350_490, ["model.detector.use_scale=true"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_entries_and_elements(name: str) -> None:
    entries, elements, overrides = MODELS[name]
    model = published("blendmask_r50_1x" if name == "fcos" else name, *overrides)
    exported = export_adelaidet(model, detector_only=name == "fcos")
    assert len(exported) == entries
    assert sum(value.numel() for value in exported.values()) == elements


@pytest.mark.parametrize("name", MODELS)
def test_the_variant_is_read_off_the_entries(name: str) -> None:
    """Building what the entries say gives the model they came from."""
    experiment = "blendmask_r50_1x" if name == "fcos" else name
    exported = export_adelaidet(published(experiment, *MODELS[name][2]), detector_only=name == "fcos")
    again = export_adelaidet(published("ablation_a", *variant_of(exported).overrides()), detector_only=name == "fcos")
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in exported.items()}


def bottleneck(state: dict[str, Tensor], x: Tensor, block: str, stride: int) -> Tensor:
    """A residual block written down from the published names: the stride in the first 1x1 convolution."""

    def conv_norm(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        x = F.conv2d(x, state[f"{block}.{name}.weight"], stride=stride, padding=padding)
        mean, var, scale, bias = (
            state[f"{block}.{name}.norm.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, bias, eps=1e-5)

    shortcut = conv_norm("shortcut", x, stride) if f"{block}.shortcut.weight" in state else x
    y = conv_norm("conv1", x, stride).relu()
    y = conv_norm("conv2", y, padding=1).relu()
    return (conv_norm("conv3", y) + shortcut).relu()


def test_stages_of_resnet50_follow_the_published_names() -> None:
    model = published("blendmask_r50_1x").eval()
    state = weights(model)
    load_adelaidet(model, state)
    x = torch.randn(1, 64, 16, 24)
    with torch.no_grad():
        for stage, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
            wanted = x
            for block in range(blocks):
                stride = 2 if stage > 2 and block == 0 else 1
                wanted = bottleneck(state, wanted, f"{BOTTOM_UP}.res{stage}.{block}", stride)
            x = model.backbone.stages[stage - 1](x)
            torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)
