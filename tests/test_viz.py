from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from b2inst import viz
from b2inst.ops.laplacian import boundary
from b2inst.structures import Detections
from b2inst.viz_curves import curves
from b2inst.viz_draw import NEGATIVE, NEUTRAL, POSITIVE, basis_colors, instance_colors


def gray(height=40, width=48, value=100):
    return torch.full((3, height, width), value, dtype=torch.uint8)


def square(top, left, side, height=40, width=48):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def paint(image, *masks, **options):
    stack = torch.stack(masks)
    return viz.draw_instances(image, stack, torch.zeros(len(masks), dtype=torch.int64), None, **options)


def detections(size=(40, 48), scores=(0.9, 0.2), inside=10.0):
    count = len(scores)
    boxes = torch.tensor([[8.0, 4.0, 24.0, 12.0], [30.0, 20.0, 40.0, 30.0]])[:count]
    logits, scores = torch.full((count, 4, 4), inside), torch.tensor(scores)
    return Detections(boxes, torch.zeros(count, dtype=torch.int64), scores, scores, logits, size)


def test_outline_fill_and_nothing_else():
    mask = square(5, 6, 8)
    picture = paint(gray(value=255), mask)
    color = instance_colors(1)[0]
    assert picture.shape == (3, 40, 48) and picture.dtype == torch.uint8
    inner = square(6, 7, 6)
    assert (picture[:, mask & ~inner] == color[:, None]).all()
    fill = (0.55 * 255 + 0.45 * color.float()).round().to(torch.uint8)
    assert (picture[:, inner] == fill[:, None]).all()
    assert (picture[:, ~mask] == 255).all()  # torchvision's own painter makes them 254


def test_outline_is_two_pixels_in_a_large_picture():
    mask = square(100, 100, 50, 320, 330)
    picture = paint(gray(320, 330), mask, alpha=0.0)
    contour = (picture != 100).any(dim=0)
    assert torch.equal(contour, mask & ~square(102, 102, 46, 320, 330))


@pytest.mark.parametrize("size", [(60, 70), (330, 340)])
def test_painting_in_the_extent_is_painting_in_the_picture(size):
    generator = torch.Generator().manual_seed(0)
    soft = torch.nn.functional.interpolate(torch.rand(12, 1, 9, 9, generator=generator), size, mode="bilinear")[:, 0]
    masks = soft > 0.6
    masks[1] = True  # touches all sides
    masks[2] = False
    masks[3], masks[3, -1, -1] = False, True
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    expected, order = image.clone(), masks.sum(dim=(1, 2)).argsort(descending=True, stable=True).tolist()
    for mask, color in ((masks[i], instance_colors(12)[i][:, None]) for i in order):
        expected[:, mask] = (0.55 * expected[:, mask].float() + 0.45 * color.float()).round().to(torch.uint8)
        line = boundary(mask[None])[0] > 0
        if min(size) >= 320:
            line |= boundary((mask & ~line)[None])[0] > 0
        expected[:, line] = color
    assert torch.equal(paint(image, *masks), expected)


def test_without_outline_all_of_the_mask_is_fill():
    mask = square(5, 6, 8)
    picture = paint(gray(value=0), mask, outline=False, alpha=1.0)
    assert (picture[:, mask] == instance_colors(1)[0][:, None]).all()


def test_image_keeps_its_channel_order_and_is_not_changed():
    image = gray()
    image[0], image[1], image[2] = 10, 20, 30
    before = image.clone()
    assert paint(image, square(5, 6, 8))[:, 0, 0].tolist() == [10, 20, 30]
    assert torch.equal(image, before)


def test_one_pixel_mask_is_one_pixel_of_its_color():
    picture = paint(gray(), square(7, 9, 1))
    assert (picture != 100).any(dim=0).nonzero().tolist() == [[7, 9]]
    assert torch.equal(picture[:, 7, 9], instance_colors(1)[0])


def test_no_instances_give_a_copy():
    image = gray()
    picture = viz.draw_instances(image, torch.zeros(0, 40, 48, dtype=torch.bool), torch.zeros(0).long(), ["a"])
    assert torch.equal(picture, image) and picture.data_ptr() != image.data_ptr()


def test_smaller_mask_is_on_top_whatever_the_order():
    large, small = square(5, 5, 20), square(10, 10, 4)
    for masks, index in (((large, small), 1), ((small, large), 0)):
        assert torch.equal(paint(gray(), *masks)[:, 10, 10], instance_colors(2)[index])


def test_crowd_is_hatched_gray_below_the_instances():
    crowd, mask = square(0, 0, 16), square(8, 8, 16)
    image = gray(value=100)
    image[0] = 150
    picture = paint(image, mask, crowd=crowd, alpha=1.0)
    stripes = picture[:, crowd & ~mask]
    changed = (stripes != torch.tensor([[150], [100], [100]])).any(dim=0)
    assert changed.any() and not changed.all()
    assert (stripes[0, changed] == stripes[1, changed]).all() and (stripes[0, changed] == stripes[2, changed]).all()
    assert torch.equal(picture[:, ~(crowd | mask)], image[:, ~(crowd | mask)])
    assert (picture[:, mask] == instance_colors(1)[0][:, None]).all()


def test_boxes_end_inside_of_their_last_pixel():
    empty = torch.zeros(1, 40, 48, dtype=torch.bool)
    box = torch.tensor([[4.0, 6.0, 10.0, 12.0]])  # pixels 4 to 9 and 6 to 11
    changed = (viz.draw_instances(gray(), empty, torch.tensor([0]), None, boxes=box) != 100).any(dim=0)
    assert torch.equal(changed, square(6, 4, 6) & ~square(7, 5, 4))


def test_a_box_that_leaves_the_picture_is_cut_off():
    empty = torch.zeros(1, 40, 48, dtype=torch.bool)
    box = torch.tensor([[-9.0, -9.0, 99.0, 99.0]])
    changed = (viz.draw_instances(gray(), empty, torch.tensor([0]), None, boxes=box) != 100).any(dim=0)
    assert changed[0].all() and changed[-1].all() and changed[:, 0].all() and changed[:, -1].all()
    assert not changed[1:-1, 1:-1].any()


def test_label_is_written_and_depends_on_the_score():
    image, mask, label = gray(120, 160), square(60, 60, 20, 120, 160)[None], torch.tensor([1])
    pictures = [
        viz.draw_instances(image, mask, label, ["a", "dog"], None if score is None else torch.tensor([score]))
        for score in (None, 0.87, 0.13)
    ]
    outside = [picture[:, ~mask[0]] for picture in pictures]
    assert not torch.equal(outside[1], outside[0]) and not torch.equal(outside[1], outside[2])
    assert (outside[1] == instance_colors(1)[0][:, None]).all(dim=0).any()  # the ground of the text


def test_no_label_for_an_empty_mask_without_a_box():
    empty = torch.zeros(1, 40, 48, dtype=torch.bool)
    assert torch.equal(viz.draw_instances(gray(), empty, torch.tensor([0]), ["dog"]), gray())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": gray().float()}, "uint8"),
        ({"image": gray()[:1]}, r"\(3, H, W\)"),
        ({"masks": torch.zeros(1, 40, 48)}, "float32: bool"),
        ({"masks": torch.zeros(1, 48, 40, dtype=torch.bool)}, r"\(48, 40\).*\(40, 48\)"),
        ({"labels": torch.tensor([2])}, "label 2 has no name"),
        ({"labels": torch.tensor([-1])}, "label -1 has no name"),
        ({"labels": torch.tensor([0, 1])}, "2 labels for 1 masks"),
        ({"scores": torch.ones(2)}, "2 scores for 1 masks"),
        ({"boxes": torch.ones(3, 4)}, "3 boxes for 1 masks"),
        ({"crowd": torch.zeros(4, 4, dtype=torch.bool)}, r"\(4, 4\).*\(40, 48\)"),
    ],
)
def test_instances_that_do_not_fit(change, message):
    given = {"image": gray(), "masks": square(5, 6, 8)[None], "labels": torch.tensor([0]), "class_names": ["a", "b"]}
    with pytest.raises(ValueError, match=message):
        viz.draw_instances(**{**given, **change})


def test_colors_repeat_exactly_and_differ():
    colors = instance_colors(12)
    assert torch.equal(colors, instance_colors(20)[:12])
    assert torch.pdist(colors.float()).min() > 40
    assert instance_colors(0).shape == (0, 3)


@pytest.mark.parametrize("count", [1, 4, 32])
def test_no_basis_is_red(count):
    colors = basis_colors(count).int()
    assert colors.shape == (count, 3) and (2 * colors[:, 0] <= colors[:, 1] + colors[:, 2]).all()


def test_detections_are_pasted_where_their_box_is():
    picture = viz.draw_detections(gray(), detections(), None)
    inside = torch.zeros(40, 48, dtype=torch.bool)
    inside[4:12, 8:24] = True
    assert torch.equal((picture != 100).any(dim=0), inside)  # the second one scores less than 0.3


def test_detections_threshold_and_number():
    changed = [
        (viz.draw_detections(gray(), detections(), None, *options) != 100).any(dim=0)[25, 35].item()
        for options in ((0.2,), (0.2, 1))
    ]
    assert changed == [True, False]


def test_detection_without_mask_shows_its_box():
    changed = (viz.draw_detections(gray(), detections(inside=-10.0), None) != 100).any(dim=0)
    assert changed[4, 8:24].all() and changed[11, 8:24].all() and not changed[5:11, 9:23].any()


def test_detections_of_another_size():
    with pytest.raises(ValueError, match=r"\(80, 96\).*\(40, 48\).*resized"):
        viz.draw_detections(gray(), detections(size=(80, 96)), None)
    picture = viz.draw_detections(gray(), detections(size=(80, 96)).resized((40, 48)), None)
    assert (picture != 100).any(dim=0).nonzero().amin(dim=0).tolist() == [2, 4]


def test_bases_red_only_at_the_boundary():
    bases = torch.randn(4, 8, 10, generator=torch.Generator().manual_seed(0))
    boundary = torch.full((8, 10), -20.0)
    boundary[:, 5] = 20
    red, green, blue = viz.draw_bases(bases, (32, 40), boundary).int()
    assert (red[:, 21:23] > 250).all() and (green[:, 21:23] < 5).all() and (blue[:, 21:23] < 5).all()
    assert (2 * red <= green + blue + 4)[:, :18].all()  # 4: rounding to whole numbers
    assert torch.equal(viz.draw_bases(bases, (32, 40), torch.full((8, 10), -200.0)), viz.draw_bases(bases, (32, 40)))


def test_bases_stand_where_they_are():
    bases = torch.zeros(2, 4, 4)
    bases[0, :2], bases[1, 2:] = 1, 1
    picture = viz.draw_bases(bases, (16, 16))
    first, second = basis_colors(2)
    assert torch.equal(picture[:, 0, 0], first) and torch.equal(picture[:, 15, 15], second)


def test_outliers_and_nan_leave_the_rest_as_it_is():
    bases = torch.linspace(0, 1, 400).view(1, 20, 20).clone()
    usual = viz.draw_bases(bases, (20, 20)).float()
    for value in (1e6, float("nan"), float("inf")):
        odd = bases.clone()
        odd[0, 0, 0] = value
        assert (viz.draw_bases(odd, (20, 20)).float() - usual)[:, 1:].abs().max() <= 2
    assert (viz.draw_bases(torch.full((1, 4, 4), float("nan")), (8, 8)) == 0).all()


@pytest.mark.parametrize("draw", [viz.draw_bases, lambda b, s, r=None: viz.draw_basis_row(b, r, s)])
def test_bases_that_do_not_fit(draw):
    for bases in (torch.zeros(4, 4), torch.zeros(0, 4, 4)):
        with pytest.raises(ValueError, match="K >= 1"):
            draw(bases, (8, 8))
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(4, 4\)"):
        draw(torch.zeros(1, 4, 4), (8, 8), torch.zeros(2, 2))


def test_basis_row_diverges_from_neutral():
    bases = torch.zeros(3, 4, 4)
    bases[0], bases[1] = 1, -1
    row = viz.draw_basis_row(bases, torch.full((4, 4), 20.0), (40, 60))
    assert row.shape[2] == 4 + 4 * 64
    colors = [row[:, -10, 4 + 64 * i + 30].tolist() for i in range(4)]
    assert colors == [list(color) for color in (POSITIVE, NEGATIVE, NEUTRAL, (255, 255, 255))]


def test_basis_row_breaks_after_eight():
    one, two = (viz.draw_basis_row(torch.randn(k, 4, 4), None, (20, 20)) for k in (8, 9))
    assert one.shape[2] == two.shape[2] == 4 + 8 * 24 and two.shape[1] == 2 * one.shape[1] - 4


def test_boundary_target_cells_and_ignored_ones():
    target, weight = torch.zeros(4, 6), torch.ones(4, 6)
    target[1, 2] = 1
    weight[3], target[3, 0] = 0, 1
    picture = viz.draw_boundary(target, (16, 24), weight)
    white = torch.zeros(16, 24, dtype=torch.bool)
    white[4:8, 8:12] = True
    assert (picture[:, :12][:, white[:12]] == 255).all() and (picture[:, :12][:, ~white[:12]] == 0).all()
    ignored = picture[:, 12:]
    assert (ignored[0] == ignored[1]).all() and (ignored[0] == ignored[2]).all()  # gray
    assert viz.IGNORED in ignored and len(ignored.unique()) > 1 and ignored.min() > 0 and ignored.max() < 255


def test_boundary_target_that_does_not_fit():
    with pytest.raises(ValueError, match=r"\(1, 4, 4\)"):
        viz.draw_boundary(torch.zeros(1, 4, 4), (8, 8))
    with pytest.raises(ValueError, match=r"weight \(2, 2\)"):
        viz.draw_boundary(torch.zeros(4, 4), (8, 8), torch.ones(2, 2))


def test_table_has_every_picture_below_its_caption():
    pictures = {"one": gray(value=10), "two": gray(value=20), "three": gray(30, 20, value=30)}
    table = viz.side_by_side(pictures, columns=2, pad=4)
    assert table.shape[2] == 4 + 2 * 52
    head = (table.shape[1] - 4 - (40 + 4) - (30 + 4)) // 2
    assert (table[:, 4 + head : 44 + head, 4:52] == 10).all()
    assert (table[:, 4 + head : 44 + head, 56:104] == 20).all()
    assert (table[:, -34:-4, 4:24] == 30).all() and (table[:, -34:-4, 24:] == 255).all()
    assert (table[:, 4 : 4 + head, 4:52] < 128).any()  # a caption


def test_a_long_caption_stays_in_its_cell():
    table = viz.side_by_side({"a caption much wider than this": gray(), "": gray()})
    assert (table[:, :-44, 52:] == 255).all() and table.shape[2] == 4 + 2 * 52


@pytest.mark.parametrize(("pictures", "columns"), [({}, None), ({"a": gray()}, 0), ({"a": gray().float()}, None)])
def test_tables_of_nothing(pictures, columns):
    with pytest.raises(ValueError, match="pictures in|uint8"):
        viz.side_by_side(pictures, columns)


def test_save_writes_rgb_and_nothing_else(tmp_path):
    picture = gray()
    picture[0] = 200
    path = viz.save(picture, tmp_path / "new" / "a.png")
    assert torch.equal(pil_to_tensor(Image.open(path)), picture)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    viz.save(gray(), path)
    assert torch.equal(pil_to_tensor(Image.open(path)), gray())


def test_save_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = viz.save(gray(), tmp_path / "a.png")

    def half(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        viz.save(gray(value=1), path)
    monkeypatch.undo()
    assert torch.equal(pil_to_tensor(Image.open(path)), gray())
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_save_refuses_other_formats(tmp_path):
    with pytest.raises(ValueError, match=r"\.png"):
        viz.save(gray(), tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="uint8"):
        viz.save(gray().float(), tmp_path / "a.png")


@pytest.fixture
def drawn_axes(monkeypatch):
    """The axes of every figure, by file name."""
    axes = {}
    from matplotlib.figure import Figure

    original = Figure.savefig

    def remember(self, path, **options):
        axes[path.name] = self.axes[0]
        original(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return axes


HEADER = "epoch,step,lr-SGD,train/loss,train/loss_cls,train/positives,val/loss,box/AP,mask/AP,boundary/AP\n"
SPARSE = "0,0,,4.0,2.0,7,,,,\n,0,0.01,,,,,,,\n0,10,,3.0,1.0,9,,,,\n0,10,,,,,3.5,0.2,0.1,0.05\n"


def write(folder, text):
    path = folder / "metrics.csv"
    path.write_text(text)
    return path


def test_curves_of_a_sparse_log(tmp_path, drawn_axes):
    written = curves(write(tmp_path, HEADER + SPARSE), tmp_path / "out")
    assert [path.name for path in written] == ["curves_loss.png", "curves_ap.png"]
    assert all(Image.open(path).width > 500 for path in written)
    lines = {line.get_label(): line for line in drawn_axes["curves_loss.png"].lines}
    assert set(lines) == {"train/loss", "train/loss_cls", "val/loss"}
    assert lines["train/loss_cls"].get_xydata().tolist() == [[0, 2], [10, 1]]
    assert lines["train/loss"].get_linewidth() > lines["train/loss_cls"].get_linewidth()
    assert (lines["val/loss"].get_linestyle(), lines["train/loss"].get_linestyle()) == ("--", "-")
    assert drawn_axes["curves_loss.png"].get_yscale() == "log"
    scores = {line.get_label(): line.get_xydata().tolist() for line in drawn_axes["curves_ap.png"].lines}
    assert scores == {"box/AP": [[10, 0.2]], "mask/AP": [[10, 0.1]], "boundary/AP": [[10, 0.05]]}


def test_a_negative_loss_makes_the_axis_linear(tmp_path, drawn_axes):
    text = "step,train/loss,train/loss_boundary_kervadec\n0,4.0,0.1\n1,3.0,-0.2\n"
    assert [path.name for path in curves(write(tmp_path, text), tmp_path)] == ["curves_loss.png"]
    assert drawn_axes["curves_loss.png"].get_yscale() == "linear"


@pytest.mark.parametrize("text", ["", "step,epoch\n", HEADER, "step,lr-SGD\n0,0.1\n"])
def test_no_picture_without_values(tmp_path, text):
    assert curves(write(tmp_path, text), tmp_path / "out") == []
    assert curves(tmp_path / "missing.csv", tmp_path) == []


def test_pictures_need_neither_lightning_nor_hydra_nor_wandb_nor_pyplot():
    code = (
        "import sys, b2inst.viz, b2inst.viz_curves\n"
        "print({'pytorch_lightning', 'lightning', 'hydra', 'wandb', 'matplotlib.pyplot'} & set(sys.modules) or 'none')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "none\n"
