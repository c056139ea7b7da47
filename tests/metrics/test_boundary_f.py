from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from b2inst.metrics.boundary_f import BoundaryF, best_of_image, count_matches, joined, precision_recall_f
from b2inst.metrics.boundary_truth import crowd_area, true_boundaries
from b2inst.metrics.ground_truth import GroundTruth

HALF = np.array([0.5])


def random_map(seed: int, size: tuple[int, int] = (13, 17)) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, of which a third are 0, some thin truth, and an ignored corner."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(size, generator=generator) * (torch.rand(size, generator=generator) > 0.3)
    truth = torch.rand(size, generator=generator) > 0.9
    ignored = torch.zeros(size, dtype=torch.bool)
    ignored[:5, :6] = True
    return probs, truth, ignored


def plain_counts(probs: Tensor, truth: Tensor, tolerance: float, threshold: float, ignored: Tensor) -> list[int]:
    """By the words of the definition: each pair of pixels, and scipy's matching, of one threshold alone."""

    def pairs(some: list, others: list) -> int:
        near = np.array([[math.dist(p, t) <= tolerance for t in others] for p in some]).reshape(len(some), len(others))
        return int((maximum_bipartite_matching(csr_array(near), perm_type="column") >= 0).sum()) if near.any() else 0

    predicted = [(y, x) for y, x in np.ndindex(*probs.shape) if probs[y, x] >= threshold]
    true = [(y, x) for y, x in np.ndindex(*truth.shape) if truth[y, x]]
    own = [p for p in predicted if not ignored[p]]
    wanted = [t for t in true if not ignored[t]]
    return [len(own), pairs(own, true), len(wanted), pairs(predicted, wanted)]


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 1.9, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_the_plain_definition(seed: int, tolerance: float) -> None:
    probs, truth, ignored = random_map(seed)
    thresholds = np.array([0.05, 0.25, 0.5, 0.75, 0.97])
    counts = count_matches(probs, truth, tolerance, thresholds, ignored)
    assert counts.tolist() == [plain_counts(probs, truth, tolerance, t, ignored) for t in thresholds]
    everywhere = count_matches(probs, truth, tolerance, thresholds)
    assert everywhere.tolist() == [
        plain_counts(probs, truth, tolerance, t, torch.zeros_like(ignored)) for t in thresholds
    ]
    assert (everywhere[:, 0] > counts[:, 0]).any() and (everywhere[:, 1] == everywhere[:, 3]).all()


def test_a_pixel_is_predicted_from_its_own_value_on() -> None:
    probs = torch.tensor([[0.25, 0.5, 0.75]])
    counts = count_matches(probs, torch.ones(1, 3).bool(), 0.0, np.array([0.25, 0.5, 0.75, 0.9]))
    assert counts[:, 0].tolist() == [3, 2, 1, 0]


def line(column: int, size: int = 21, value: float = 1.0) -> Tensor:
    maps = torch.zeros(size, size)
    maps[:, column] = value
    return maps


@pytest.mark.parametrize(("column", "right"), [(10, True), (12, True), (13, False)])
def test_a_shifted_line_matches_within_the_tolerance_alone(column: int, right: bool) -> None:
    counts = count_matches(line(column), line(10).bool(), 2.0, HALF)
    assert counts.tolist() == [[21, 21 * right, 21, 21 * right]]


def test_half_a_line_and_a_wrong_one_by_hand() -> None:
    probs = line(10)
    probs[:11] = 0  # 10 of 21 pixels are left
    probs[:5, 2] = 1  # 5 wrong ones
    counts = count_matches(probs, line(10).bool(), 1.0, HALF)
    assert counts.tolist() == [[15, 10, 21, 10]]
    precision, recall, f = precision_recall_f(counts)
    assert (precision[0], recall[0]) == pytest.approx((10 / 15, 10 / 21))
    assert f[0] == pytest.approx(2 / (15 / 10 + 21 / 10))


def test_a_second_response_beside_a_boundary_is_wrong() -> None:
    double = line(10) + line(11)
    assert count_matches(double, line(10).bool(), 1.0, HALF).tolist() == [[42, 21, 21, 21]]


def test_nothing_predicted_and_nothing_true() -> None:
    nothing, truth = torch.zeros(5, 5), torch.zeros(5, 5, dtype=torch.bool)
    counts = count_matches(nothing, truth, 1.0, HALF)
    assert counts.tolist() == [[0, 0, 0, 0]]
    precision, recall, f = precision_recall_f(counts)
    assert precision[0] == 0 and math.isnan(recall[0]) and math.isnan(f[0])
    assert precision_recall_f(count_matches(nothing, ~truth, 1.0, HALF))[2][0] == 0


def measure(**options: object) -> BoundaryF:
    """Tolerance of 1 pixel on 21 x 21, thresholds 0.25, 0.5, 0.75."""
    return BoundaryF(**{"thresholds": 3, "tolerance": 1.2 / math.hypot(21, 21), **options})


def test_ods_has_one_threshold_and_ois_that_of_each_image() -> None:
    """Image 1 is right from 0.3 and wrong below; image 2 is right at 0.9 alone, with something wrong at 0.6."""
    scores = measure()
    first, second = line(10, value=0.3), line(10, value=0.9) + line(3, value=0.6)
    scores.update(1, first[None], line(10).bool()[None])
    scores.update(2, second[None], line(10).bool()[None])
    metrics, per_class = scores.compute()
    # 0.25: 63 predicted, 42 right, 42 of 42 found; 0.5: 42, 21, 21 of 42; 0.75: 21, 21, 21 of 42
    assert metrics["boundary_f/ODS"] == pytest.approx(0.8)
    assert (metrics["boundary_f/threshold"], metrics["boundary_f/precision"]) == pytest.approx((0.25, 2 / 3))
    assert metrics["boundary_f/recall"] == 1 and metrics["boundary_f/OIS"] == 1 and per_class == {}


def test_an_image_without_boundary_takes_its_highest_threshold() -> None:
    counts = np.array([[9, 0, 0, 0], [5, 0, 0, 0], [1, 0, 0, 0]])
    assert best_of_image(counts).tolist() == [1, 0, 0, 0]
    equal = np.array([[4, 2, 4, 2], [2, 2, 4, 1], [4, 2, 4, 2], [0, 0, 4, 0]])
    assert best_of_image(equal).tolist() == [4, 2, 4, 2]


def random_images(count: int, classes: int) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    images = []
    for number in range(count):
        maps = [random_map(50 * number + row, (21, 21)) for row in range(1 + classes)]
        probs, truth = (torch.stack([m[i] for m in maps]) for i in (0, 1))
        images.append((number, probs, truth, maps[0][2]))
    return images


def test_sums_do_not_depend_on_the_order_or_on_repeated_images_and_do_not_grow() -> None:
    images = random_images(5, 2)
    one, other = measure(classes=("a", "b")), measure(classes=("a", "b"))
    for image in images:
        one.update(*image)
        size = one.state.total.size + one.state.best.size + one.state.last[1].size
    for image in [*images[::-1], images[0], images[3], images[3]]:
        other.update(*image)
    assert one.compute() == other.compute() and size == 2 * 3 * 3 * 4 + 3 * 4
    total = joined([one.state]).total
    assert total[:, 0, 2].tolist() == [
        sum(plain_counts(p[row], t[row], 1.2, 0.5, _near(i, 1.2))[2] for _, p, t, i in images) for row in range(3)
    ]
    one.reset()
    assert math.isnan(one.compute()[0]["boundary_f/ODS"])


def _near(mask: Tensor, distance: float) -> Tensor:
    """Pixels within a distance of a mask."""
    places = mask.nonzero().tolist()
    near = [min(math.dist((y, x), place) for place in places) <= distance for y, x in np.ndindex(*mask.shape)]
    return torch.tensor(near).view(mask.shape)


@pytest.mark.parametrize("shares", [([0, 2, 4], [1, 3, 0]), ([0], [0]), ([0, 1, 2, 3, 4], [0])])
def test_processes_add_up_and_an_image_of_two_counts_once(shares: tuple[list[int], list[int]]) -> None:
    images = random_images(5, 1)
    parts = [measure(classes=("a",)) for _ in shares]
    for part, share in zip(parts, shares, strict=True):
        for index in share:
            part.update(*images[index])
    alone = measure(classes=("a",))
    for index in sorted({index for share in shares for index in share}):
        alone.update(*images[index])
    parts[0].join([part.state for part in parts])
    assert parts[0].compute() == alone.compute()


def test_classes_by_hand() -> None:
    scores = measure(classes=("a", "b", "never"))
    truth = torch.stack([line(4) + line(14), line(4), line(14), torch.zeros(21, 21)]).bool()
    probs = torch.stack([line(4) + line(9), line(4), line(9), torch.zeros(21, 21)])
    scores.update(1, probs, truth)
    metrics, per_class = scores.compute()
    assert metrics["boundary_f/ODS"] == pytest.approx(0.5)
    assert metrics["boundary_f/class_ODS"] == pytest.approx(0.5)  # mean of 1 and 0; the third has no true pixel
    assert per_class["a"] == {"boundary_f/ODS": 1, "boundary_f/OIS": 1} and per_class["b"]["boundary_f/ODS"] == 0
    assert math.isnan(per_class["never"]["boundary_f/ODS"])


def test_a_class_that_is_nowhere_is_wrong_where_it_is_predicted() -> None:
    scores = measure(classes=("a",))
    for image_id, true in ((1, line(4).bool()), (2, torch.zeros(21, 21).bool())):
        scores.update(image_id, line(4).expand(2, 21, 21), true.expand(2, 21, 21))
    assert scores.compute()[1]["a"]["boundary_f/ODS"] == pytest.approx(2 / 3)  # precision 1/2, recall 1


def test_crowds_count_neither_as_right_nor_as_wrong() -> None:
    ignored = torch.zeros(21, 21, dtype=torch.bool)
    ignored[:, 15:] = True  # with the tolerance of 1 pixel: from column 14 on
    scores = measure()
    scores.update(1, (line(4) + line(18) + line(14))[None], (line(4) + line(20)).bool()[None], ignored)
    assert joined([scores.state]).total[0, 1].tolist() == [21, 21, 21, 21]
    scores.reset()
    scores.update(1, (line(4) + line(13))[None], line(4).bool()[None], ignored)
    assert joined([scores.state]).total[0, 1].tolist() == [42, 21, 21, 21]


def test_thick_boundaries_are_thinned_unless_told_not_to() -> None:
    thick = line(8, value=0.5) + line(9, value=0.7) + line(10, value=0.9) + line(11, value=0.7) + line(12, value=0.5)
    for thin, predicted in ((True, 21), (False, 105)):
        scores = measure(thin=thin)
        scores.update(1, thick[None], line(10).bool()[None])
        assert joined([scores.state]).total[0, 1, 0] == predicted


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 3), (3, 3)])
def test_tiny_images_are_measured(size: tuple[int, int]) -> None:
    scores = measure()
    truth = torch.zeros(size, dtype=torch.bool)
    truth[-1, -1] = True
    scores.update(1, truth.float()[None], truth[None])
    assert scores.compute()[0]["boundary_f/ODS"] == 1


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="thresholds=0"):
        BoundaryF(thresholds=0)
    with pytest.raises(ValueError, match="tolerance=2: give a share"):
        BoundaryF(tolerance=2)
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"{count} maps; give 1 \\+ 1"):
            BoundaryF(("a",)).update(1, torch.zeros(count, 4, 4), torch.zeros(count, 4, 4).bool())
    with pytest.raises(ValueError, match=r"map 0: probs \(4, 4\), truth \(4, 5\)"):
        BoundaryF().update(1, torch.zeros(1, 4, 4), torch.zeros(1, 4, 5).bool())


def test_the_table_of_the_curve(tmp_path: Path) -> None:
    scores = measure(classes=("a",))
    scores.update(1, (line(4) + line(9, value=0.3)).expand(2, 21, 21), line(4).bool().expand(2, 21, 21))
    scores.write(tmp_path / "new" / "boundary_f.csv")
    with (tmp_path / "new" / "boundary_f.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], float(row["threshold"])) for row in rows] == [
        (name, threshold) for name in ("all", "a") for threshold in (0.25, 0.5, 0.75)
    ]
    assert [float(row["precision"]) for row in rows[:3]] == [0.5, 1, 1] and float(rows[4]["f"]) == 1


def square(x0: int, y0: int, x1: int, y1: int, **values: object) -> dict[str, object]:
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    return {"image_id": 1, "category_id": 5, "iscrowd": 0, "segmentation": [polygon], **values}


def test_true_boundaries_by_hand() -> None:
    """Two squares that touch, of two categories, one of which the image cuts off; and a crowd."""
    crowd = {"size": [8, 12], "counts": [10 * 8, 16]}  # the last two columns
    truth = GroundTruth({
        "images": [{"id": 1, "height": 8, "width": 12}, {"id": 2, "height": 3, "width": 4}],
        "categories": [{"id": 3}, {"id": 5}],
        "annotations": [square(0, 2, 4, 6), square(4, 2, 7, 5, category_id=3),
                        square(0, 0, 1, 1, segmentation=crowd, iscrowd=1, bbox=[10, 0, 2, 8], area=16)],
    })  # fmt: skip
    truth.rasterize()
    maps, ignored = torch.stack(list(true_boundaries(truth, 1, [3, 5]))), crowd_area(truth, 1)
    five = ["1111", "...1", "...1", "1111"]  # none at the left, where the image ends
    three = ["111", "1.1", "111"]
    wanted = torch.zeros(3, 8, 12, dtype=torch.bool)
    wanted[2, 2:6, :4] = torch.tensor([[cell == "1" for cell in row] for row in five])
    wanted[1, 2:5, 4:7] = torch.tensor([[cell == "1" for cell in row] for row in three])
    wanted[0] = wanted[1] | wanted[2]
    assert torch.equal(maps, wanted)
    assert ignored[:, 10:].all() and ignored.sum() == 16
    (alone,), ignored = true_boundaries(truth, 2), crowd_area(truth, 2)
    assert alone.shape == (3, 4) and not alone.any() and ignored.shape == (3, 4) and not ignored.any()
