import pytest
import torch

from b2inst.models.preset import PRESETS, Normalize, get_preset
from models import build


@pytest.mark.parametrize("name", PRESETS)
def test_padding_is_exactly_zero(name):
    images = build.images(2, 32, 64, sizes=[(20, 64), (32, 33)])
    normalized = Normalize(get_preset(name))(images)
    assert normalized.dtype == torch.float32 and normalized.shape == (2, 3, 32, 64)
    assert (normalized[0, :, 20:] == 0).all() and (normalized[1, :, :, 33:] == 0).all()
    assert (normalized[0, :, :20] != 0).any(dim=0).all()


def test_torchvision_is_rgb_with_deviations():
    images = build.images(1, 32, 32)
    pixel = images.pixels[0, :, 3, 5].tolist()
    wanted = [(pixel[0] - 123.675) / 58.395, (pixel[1] - 116.28) / 57.12, (pixel[2] - 103.53) / 57.375]
    assert Normalize(get_preset("torchvision"))(images)[0, :, 3, 5].tolist() == pytest.approx(wanted, abs=1e-5)


def test_msra_is_bgr_with_means_alone():
    images = build.images(1, 32, 32)
    red, green, blue = images.pixels[0, :, 3, 5].tolist()
    wanted = [blue - 103.53, green - 116.28, red - 123.675]
    assert Normalize(get_preset("msra"))(images)[0, :, 3, 5].tolist() == pytest.approx(wanted, abs=1e-4)


def test_constants_are_not_in_checkpoints():
    assert Normalize(get_preset("msra")).state_dict() == {}


def test_unknown_preset():
    with pytest.raises(ValueError, match="'caffe'.*torchvision, msra, yolact"):
        get_preset("caffe")
