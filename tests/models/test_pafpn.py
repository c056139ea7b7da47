import pytest
import torch
from hydra.utils import instantiate
from torch.nn import functional as F

from b2inst.models.fpn import FPN
from b2inst.models.pafpn import PAFPN
from models import build
from models.test_assemblies import NAMES, assembly, batch, step

CHANNELS = [16, 32, 64, 128]


def maps(size=128):
    generator = torch.Generator().manual_seed(0)
    sizes = [(channels, size // 2**i) for i, channels in enumerate(CHANNELS, start=2)]
    return [torch.randn(2, c, side, side, generator=generator) for c, side in sizes]


def shaken(pyramid):
    """With biases that are not 0."""
    generator = torch.Generator().manual_seed(1)
    for name, value in pyramid.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, generator=generator)
    return pyramid


def test_equals_the_formula():
    torch.manual_seed(0)
    pyramid, plain = shaken(PAFPN(CHANNELS, channels=8)), FPN(CHANNELS, channels=8, top_levels=0)
    state = pyramid.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if k.startswith("pyramid.")})
    p3, p4, p5 = plain(maps())

    def conv(name, x, stride=1):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding=1)

    n4 = conv("out.0.0", p4 + conv("down.0.0", p3, 2).relu()).relu()
    n5 = conv("out.1.0", p5 + conv("down.1.0", n4, 2).relu()).relu()
    n6 = conv("top.convs.0", n5, 2)
    n7 = conv("top.convs.1", n6.relu(), 2)
    for level, wanted in zip(pyramid(maps()), (p3, n4, n5, n6, n7), strict=True):
        torch.testing.assert_close(level, wanted)


def test_the_lowest_level_reaches_all_others():
    pyramid, given = PAFPN(CHANNELS, channels=8), [m.requires_grad_() for m in maps()]
    for level in pyramid(given):
        (gradient,) = torch.autograd.grad(level.sum(), given[1], retain_graph=True)
        assert gradient.any()
    (gradient,) = torch.autograd.grad(FPN(CHANNELS, channels=8)(given)[2].sum(), given[1], allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize(
    ("options", "strides"),
    [({}, [8, 16, 32, 64, 128]), ({"top_levels": 0}, [8, 16, 32]),
     ({"lowest": 2, "top_levels": 1, "top": "pool"}, [4, 8, 16, 32, 64])],
)  # fmt: skip
@pytest.mark.parametrize("norm", ["none", "bn"])
def test_levels(options, strides, norm):
    pyramid = PAFPN(CHANNELS, channels=8, norm=norm, **options)
    assert pyramid.strides == strides and pyramid.channels == 8
    assert [level.shape for level in pyramid(maps())] == [(2, 8, 128 // s, 128 // s) for s in strides]
    assert len(pyramid.down) == len(pyramid.out) == (3 if strides[0] == 4 else 2)
    normed = any(isinstance(m, torch.nn.BatchNorm2d) for m in pyramid.down.modules())
    assert normed == (norm == "bn") and (pyramid.out[0][0].bias is None) == normed


@pytest.mark.parametrize("name", NAMES)
def test_every_basis_based_model_learns_with_it(name):
    node = {"_target_": "b2inst.models.pafpn.PAFPN", "_partial_": True, "channels": 64}
    model = build.segmenter(assembly=assembly(name, mask_size=28), num_bases=None, fpn=instantiate(node))
    step(model, batch(model))
    for part in (model.fpn.down, model.fpn.out):
        assert all(layer.weight.grad.any() for layer in part.modules() if isinstance(layer, torch.nn.Conv2d))
