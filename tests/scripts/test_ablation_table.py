"""The page of the study: its statistics, what it says where runs are missing, and the chain from training to page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ablation_table
import inspect_run
import pytest
import study
import torch
from ablation import findings, results, runs, tables
from scipy import stats

from b2inst import viz
from b2inst.lit import LitSegmenter
from toy import TOY

SIZES = ("AP", "AP75", "APs", "APm", "APl")
CONFIG = """
name: study-near-{arm}
data: {{batch_size: 8}}
trainer: {{accumulate_grad_batches: 1}}
schedule: {{steps: {steps}}}
logger: {logger}
"""


def finished(folder: Path, arm: str, seed: int, ap: float, steps: int = 100, logger: str = "{csv: {}}") -> Path:
    """A run as a study leaves it."""
    run = folder / "near" / arm / f"seed{seed}"
    (run / "crops").mkdir(parents=True)
    kinds = {"mask": ap, "boundary": ap - 0.1, "box": ap + 0.1}
    metrics = {f"{kind}/{size}": value for kind, value in kinds.items() for size in SIZES}
    (run / "metrics.json").write_text(json.dumps({**metrics, "mask/APl": None}))
    (run / "config.yaml").write_text(CONFIG.format(arm=arm, steps=steps, logger=logger))
    (run / "metrics.csv").write_text(f"step,mask/AP,boundary/AP\n49,{ap / 2},{ap / 3}\n50,,\n99,{ap},{ap - 0.1}\n")
    attempts = [{"started": "", "seconds": 9.0, "exit": -15, "processor_seconds": 60.0},
                {"started": "", "seconds": 9.0, "exit": 0, "processor_seconds": 30.0 * (seed + 1)}]  # fmt: skip
    (run / "study.json").write_text(json.dumps({**about(arm, seed), "overrides": [], "attempts": attempts}))
    of = {"model": {}, "height": 64, "width": 32}
    (run / "cost.json").write_text(json.dumps({"parameters": 14_240_000, "flops": 5_060_000_000, "of": of}))
    (run / "inspection.json").write_text(json.dumps(inspection(arm == "e")))
    for name in ("image", "truth", "found"):
        viz.save(torch.full((3, 64, 64), 200 if name == "image" else 100, dtype=torch.uint8),
                 run / "crops" / f"00_{name}.png")  # fmt: skip
    return run


def about(arm: str, seed: int) -> dict:
    group = "losses" if arm == "l" else "basis"
    return {"dataset": "near", "arm": arm, "group": group, "label": f"the arm {arm}", "seed": seed}


def inspection(boundary: bool) -> dict:
    shares = {"overall": [0.6, 0.395, 0.005], "near_boundary": [0.5, 0.48, 0.02]}
    histogram = {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "counts": [1, 1, 2, 4], "mean": 0.7}
    return {
        "boundary_basis": boundary, "attention": shares, "contribution": shares, "boundary_basis_dice": 0.8,
        "score_targets": {"iou": histogram, "boundary": histogram},
        "boundary_target": {"share": 0.1, "width_px": 4.0, "instance_px": 40.0, "width_of_instance": 0.1},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "study"
    path.mkdir()
    planned = [about(arm, seed) for seed in range(3) for arm in ("a", "e", "l")]
    planned.append({**about("a", 0), "dataset": "far"})
    (path / "plan.json").write_text(json.dumps({"references": ["a", "e"], "runs": planned}))
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ablation_table, "PICTURED", ("near",))
    monkeypatch.setattr(ablation_table, "FINDINGS", tmp_path / "findings.md")
    (tmp_path / "findings.md").write_text("e has {{ mean near e mask/AP }}, {{ difference near e a mask/AP }} to a.\n")
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/results.md"):
        (tmp_path / name).write_text(f"# head\n{ablation_table.BEGIN}\nold\n{ablation_table.END}\ntail\n")
    return tmp_path


def row(text: str, arm: str, number: int = 0) -> list[str]:
    """The cells of this arm in the n-th table that has it."""
    return [line for line in text.splitlines() if line.startswith(f"| `{arm}` |")][number].strip("| ").split(" | ")


def test_differences_are_those_of_scipy() -> None:
    ours, its = {0: 55.0, 1: 54.3, 2: 58.0, 5: 99.0}, {2: 48.0, 0: 46.9, 1: 45.9, 7: 1.0}
    found = results.paired_difference(ours, its)
    expected = stats.ttest_rel([55.0, 54.3, 58.0], [46.9, 45.9, 48.0])
    interval = expected.confidence_interval(0.95)
    assert found.pairs == 3 and found.mean == pytest.approx((8.1 + 8.4 + 10.0) / 3)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.high - found.mean == pytest.approx(2.484 * stats.tstd([8.1, 8.4, 10.0]), rel=1e-3)  # 4.303 / sqrt(3)


def test_few_pairs_have_no_interval_and_none_no_difference() -> None:
    alone = results.paired_difference({0: 3.0, 1: 9.0}, {0: 1.0})
    assert (alone.mean, alone.low, alone.high, alone.pairs) == (2.0, None, None, 1)
    assert tables.difference_cell(alone, 0) == "+2.0 (n=1)"
    assert results.paired_difference({0: 1.0}, {1: 1.0}) is None and tables.difference_cell(None, 0) == "missing"
    two = results.paired_difference({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})  # alike by chance: no proof
    assert tables.difference_cell(two, 0) == "+1.0 (n=2)"
    same = results.paired_difference({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (same.low, same.high) == (1.0, 1.0)
    assert results.mean_and_deviation([]) == (None, None) and results.mean_and_deviation([2.0]) == (2.0, None)
    assert results.mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_the_page_says_what_is_there_and_what_is_missing(folder: Path, root: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    plan["runs"] += [about(arm, 3) for arm in "ae"]
    (folder / "plan.json").write_text(json.dumps(plan))
    for seed, (a, e) in enumerate([(0.469, 0.55), (0.459, 0.544), (0.464, 0.547)]):
        finished(folder, "a", seed, a)
        finished(folder, "e", seed, e)
    (folder / "near" / "e" / "seed3").mkdir()
    attempts = {"overrides": [], "attempts": [{"started": "", "seconds": 1.0, "exit": 1}]}
    (folder / "near" / "e" / "seed3" / "study.json").write_text(json.dumps(attempts))
    assert ablation_table.main([f"--runs={folder}"], root) == 0
    text = (root / "docs" / "results.md").read_text()
    assert text.startswith("# head\n") and text.endswith("tail\n") and "old" not in text
    assert "Each run: 100 steps of 8 images." in text
    assert row(text, "a")[2:5] == ["3 of 4 (seeds 0, 1, 2)", "46.4 ± 0.5", ""]
    assert row(text, "e")[2:5] == [
        "3 of 4 (seeds 0, 1, 2), 1 failed", "54.7 ± 0.3", "+8.3 [+7.8, +8.8] (n=3)",
    ]  # fmt: skip
    assert row(text, "e")[5:] == ["54.7 ± 0.3", "54.7 ± 0.3", "54.7 ± 0.3", "-"]  # AP75, APs, APm, APl: none is large
    assert row(text, "e", 1)[3] == "44.7 ± 0.3" and row(text, "e", 2)[3] == "64.7 ± 0.3"  # boundary, box
    assert row(text, "l")[2:6] == ["0 of 3", "missing", "missing", "missing"]
    assert row(text, "a", 5)[1:] == ["2.0 ± 0.5", "14.2 M", "5.1", "`study-near-a`", "0 of 3"]  # with the broken part
    assert "## far\n\nMissing: no run of this set has ended." in text
    assert row(text, "e", 6)[1:6] == ["0.5 ± 0.0%", "2.0 ± 0.0%", "0.5 ± 0.0%", "2.0 ± 0.0%", "80.0 ± 0.0"]
    assert row(text, "a", 6)[1:3] == ["-", "-"] and row(text, "l", 4)[1:3] == ["missing", "missing"]
    assert row(text, "e", 6)[6:8] == ["70.0 ± 0.0", "25.0 ± 0.0%"]
    assert row(text, "a", 3)[1:] == ["mask AP", "23.2 ± 0.2", "46.4 ± 0.5"]  # at steps 50 and 100
    assert row(text, "e", 3)[1:] == ["difference", "+4.2 [+3.9, +4.4] (n=3)", "+8.3 [+7.8, +8.8] (n=3)"]
    assert "marks 10.0% of the cells and is 4.0 px wide" in text
    for name in ("study_near_curves.png", "study_near_crops.png"):
        assert f"(images/{name})" in text and (root / "docs" / "images" / name).stat().st_size < 100_000
    assert (
        root / "README.md"
    ).read_text() == f"# head\n{ablation_table.BEGIN}\n{_none()}\n{ablation_table.END}\ntail\n"


def _none() -> str:
    return "The study has no run that has ended."


def test_the_readme_has_the_one_table_and_the_one_picture(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation_table, "README_SETS", ("far", "near"))
    finished(folder, "a", 0, 0.4)
    finished(folder, "e", 0, 0.5)
    ablation_table.main([f"--runs={folder}"], root)
    text = (root / "README.md").read_text()
    assert row(text, "a") == ["`a`", "the arm a", "40.0", "30.0"] and "`l`" not in text
    assert row(text, "e") == ["`e`", "the arm e", "+10.0 (n=1)", "+10.0 (n=1)"]
    assert "| near, 100 steps of 8 images: mask AP |" in text and "far" not in text
    assert "seed by seed" in text and "(docs/images/study_near_crops.png)" in text
    monkeypatch.setattr(ablation_table, "PICTURED", ("far",))
    (root / "docs" / "images" / "study_near_crops.png").unlink()
    ablation_table.main([f"--runs={folder}"], root)
    assert not list((root / "docs").rglob("*crops*")), "images of a set that may not be passed on"


def test_the_numbers_of_the_text_come_from_the_runs(folder: Path, root: Path, capsys: pytest.CaptureFixture) -> None:
    finished(folder, "e", 0, 0.5)
    ablation_table.main([f"--runs={folder}"], root)
    page = root / "docs" / "results.md"
    assert "\ne has 50.0, missing to a.\n" in page.read_text()
    finished(folder, "a", 0, 0.4)
    (root / "findings.md").write_text("{{attention near e}}; {{ target near }}; {{ difference near e a boundary/AP }}")
    ablation_table.main([f"--runs={folder}"], root)
    assert "\n0.5 %; The boundary target marks 10.0% of" in page.read_text() and "; +10.0 (n=1)\n" in page.read_text()
    for text, words in [("{{ mean near e }}", "{{ mean near e }} is none of mean with 3 words"),
                        ("{{ mean near x mask/AP }}", "the study has no 'x'"), ("{{ }}", "is none of")]:  # fmt: skip
        (root / "findings.md").write_text(text)
        assert ablation_table.main([f"--runs={folder}"], root) == 1
        assert words in capsys.readouterr().err


def test_the_committed_text_asks_for_nothing_that_the_plan_does_not_have(tmp_path: Path) -> None:
    study.write_json(study.load_plan(study.PLAN, tmp_path).summary(), tmp_path / "plan.json")
    text = findings.fill((Path(study.PLAN).parent / "findings.md").read_text(), results.load_study(tmp_path))
    assert (
        "{{" not in text
        and "missing" in text
        and not any(c.isdigit() for c in text.replace("95 %", "").replace("bf1", ""))
    )


def test_a_product_has_a_table_of_its_own(folder: Path, root: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    cells = [
        ["known", "plain", "a"],
        ["known", "more", "e"],
        ["new", "plain", "new_plain"],
        ["new", "more", "new_more"],
    ]
    plan["products"] = [{"name": "systems", "title": "The systems", "rows": {"known": "Known", "new": "New"},
                         "columns": {"plain": "-", "more": "a basis"}, "cells": cells}]  # fmt: skip
    plan["runs"] += [{**about(name, 0), "group": "systems"} for name in ("new_plain", "new_more")]
    (folder / "plan.json").write_text(json.dumps(plan))
    finished(folder, "a", 0, 0.4)
    ablation_table.main([f"--runs={folder}"], root)
    page = root / "docs" / "results.md"
    assert "The systems" not in page.read_text(), "a table without a run of its own"
    finished(folder, "new_more", 0, 0.5)
    ablation_table.main([f"--runs={folder}"], root)
    table = page.read_text().split("### The systems\n\n")[1].split("\n\n")[0].splitlines()
    assert table[2] == "| Known | - | 1 of 3 (seed 0) | 40.0 |  | 30.0 | 50.0 | - | - | 80.0 | 14.2 M | 5.1 | missing |"
    assert table[3] == "| Known | a basis | 0 of 3" + " | missing" * 10 + " |"
    assert table[4].startswith("| New | - | 0 of 1 | missing") and table[5].startswith(
        "| New | a basis | 1 of 1 | 50.0"
    )
    assert "The times of a pass are missing" in page.read_text()
    work = {"height": 64, "width": 32, "rounds": 9, "on": "a machine", "threads": 2, "torch": "2"}
    times = {"near": {**work, "milliseconds": {"a": [12.34, 12.0, 13.0]}}}
    (root / "docs" / "latency.json").write_text(json.dumps(times))
    ablation_table.main([f"--runs={folder}"], root)
    assert (
        "| Known | - | 1 of 3 (seed 0) | 40.0 |  | 30.0 | 50.0 | - | - | 80.0 | 14.2 M | 5.1 | 12.3 |"
        in page.read_text()
    )
    assert "an image of 64 x 32 with random weights" in page.read_text() and "9 rounds in turn" in page.read_text()
    finished(folder, "new_plain", 0, 0.42)
    ablation_table.main([f"--runs={folder}"], root)
    assert "| New | a basis | 1 of 1 | 50.0 | +8.0 (n=1) | 40.0 |" in page.read_text()
    assert "`new_more`" not in page.read_text() and "`new_plain`" not in page.read_text()


def trained(run: Path, *precisions: str | None) -> None:
    """Note an attempt in each precision; None: it is not known."""
    attempts = [{"started": "", "seconds": 1.0, "exit": 0, **({"precision": p} if p else {})} for p in precisions]
    (run / runs.RECORD).write_text(json.dumps({**json.loads((run / runs.RECORD).read_text()), "attempts": attempts}))


def test_the_precision_of_every_run_is_told(folder: Path, root: Path) -> None:
    for seed in range(3):
        trained(finished(folder, "a", seed, 0.4), "bf16-mixed", "bf16-mixed")
    trained(finished(folder, "e", 0, 0.4), "32-true", "bf16-mixed")
    trained(finished(folder, "e", 1, 0.4), None)
    assert ablation_table.main([f"--runs={folder}"], root) == 0
    assert (
        "Each run: 100 steps of 8 images. Precision of the trainings: bf16-mixed; in 32-true then bf16-mixed "
        "(arm, seed): `e` 0; in unknown (arm, seed): `e` 1.\n"
    ) in (root / "docs" / "results.md").read_text()
    assert row((root / "docs" / "results.md").read_text(), "e")[4] == "+0.0 (n=2, 2 of unequal precision)"


def test_a_difference_of_differences_is_that_of_each_seed(folder: Path, root: Path) -> None:
    for seed, (a, e, low, high) in enumerate([(0.4, 0.5, 0.3, 0.42), (0.42, 0.5, 0.3, 0.44), (0.41, 0.55, 0.3, 0.45)]):
        for arm, ap in (("a", a), ("e", e), ("l", low), ("z", high)):
            finished(folder, arm, seed, ap)
    expected = stats.ttest_1samp([-2.0, -6.0, -1.0], 0).confidence_interval(0.95)
    (root / "findings.md").write_text("more: {{ interaction near e a z l mask/AP }}")
    ablation_table.main([f"--runs={folder}"], root)
    text = f"more: -3.0 [{expected.low:+.1f}, {expected.high:+.1f}] (n=3"
    assert f"{text})" in (root / "docs" / "results.md").read_text()
    trained(folder / "near" / "z" / "seed2", "32-true")
    ablation_table.main([f"--runs={folder}"], root)
    assert f"{text}, 1 of unequal precision)" in (root / "docs" / "results.md").read_text()


def test_several_arms_count_as_their_mean_of_each_seed(folder: Path, root: Path) -> None:
    for seed, (a, e, low, high) in enumerate([(0.4, 0.5, 0.3, 0.42), (0.42, 0.5, 0.3, 0.44), (0.41, 0.55, 0.3, 0.45)]):
        for arm, ap in (("a", a), ("e", e), ("l", low), ("z", high)):
            finished(folder, arm, seed, ap)
    (folder / "near" / "z" / "seed2" / runs.METRICS).unlink()
    text = "both {{ difference near e,z a,l mask/AP }}; mean {{ mean near e,z mask/AP }}"
    (root / "findings.md").write_text(text)
    ablation_table.main([f"--runs={folder}"], root)
    assert "both +11.0 (n=2); mean 46.5 ± 0.7" in (root / "docs" / "results.md").read_text()


def test_what_cannot_be_compared_is_refused(folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(folder, "a", 0, 0.4)
    run = finished(folder, "e", 0, 0.5, steps=200)
    assert ablation_table.main([f"--runs={folder}"], root) == 1
    assert "100 steps of 8 images: a/seed0; 200 steps of 8 images: e/seed0" in capsys.readouterr().err
    assert "old" in (root / "docs" / "results.md").read_text()
    shutil.rmtree(run)
    run = finished(folder, "e", 0, 0.5)
    viz.save(torch.zeros(3, 64, 64, dtype=torch.uint8), run / "crops" / "00_image.png")
    assert ablation_table.main([f"--runs={folder}"], root) == 1
    assert "not of the same place" in capsys.readouterr().err
    (root / "docs" / "study.jsonl").unlink()
    assert ablation_table.main([f"--runs={root}"], root) == 1
    assert "`make study` writes it" in capsys.readouterr().err


def test_a_curve_is_put_together_from_the_parts_of_an_interrupted_log(tmp_path: Path) -> None:
    (tmp_path / "metrics.1.csv").write_text("step,mask/AP\n10,0.1\n20,0.2\n30,0.9\n")
    (tmp_path / "metrics.csv").write_text("step,mask/AP\n30,0.3\n31,\n40,0.4\n")
    assert results.curve(tmp_path, "mask/AP") == pytest.approx({10: 10, 20: 20, 30: 30, 40: 40})


def test_the_curve_of_a_training_ends_without_the_score_of_its_best_checkpoint(folder: Path) -> None:
    run = finished(folder, "a", 0, 0.4)
    (run / "metrics.csv").write_text("step,mask/AP\n49,0.4\n99,0.3\n100,0.4\n")  # 100 steps; 49 was the best
    found = next(r for r in results.load_study(folder).results if (r.arm, r.seed) == ("a", 0))
    assert found.validations("mask/AP") == pytest.approx({49: 40, 99: 30})


def test_runs_of_an_earlier_plan_are_shown_too(folder: Path) -> None:
    finished(folder, "z", 4, 0.4, logger="{wandb: {}}")
    found = results.load_study(folder)
    assert [(r.arm, r.seed) for r in found.results if r.metrics] == [("z", 4)]
    assert row(tables.cost_table(found, "near"), "z")[-1] == "1 of 1"


def test_no_published_figure_lacks_its_source_and_what_was_not_recovered_is_empty() -> None:
    entries = ablation_table.OmegaConf.to_container(
        ablation_table.OmegaConf.load(Path(ablation_table.__file__).with_name("published.yaml"))
    )
    assert all(entry["source"] for entry in entries)
    text = tables.published_table(entries)
    r50 = next(line for line in text.splitlines() if "B2Inst" in line and "R-50" in line)
    assert r50.count("not recovered") == 4


def test_the_pages_have_the_markers() -> None:
    for path in ("README.md", "docs/results.md"):
        text = (ablation_table.ROOT / path).read_text()
        assert ablation_table.replace_block(text, ablation_table.BEGIN, ablation_table.END, "new") != text


@pytest.mark.slow
def test_from_training_to_page(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms, one seed, two steps: the trainings as processes, the inspections in this one, which saves seconds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    real = runs.execute

    def execute(arguments: list[str], *rest: object) -> int:
        if arguments[0] == "-m":
            return real(arguments, *rest)
        assert Path(arguments[0]) == Path(inspect_run.__file__)
        inspect_run.main(arguments[1:])
        return 0

    monkeypatch.setattr(runs, "execute", execute)
    small = [*TOY, f"data.root={tmp_path / 'set'}", "schedule.steps=2", "model.fpn.channels=64"]
    plan = {
        "output": str(tmp_path / "study"), "records": str(root / "docs" / "study.jsonl"), "seeds": [0],
        "references": ["a", "e"], "common": small,
        "inspect": {"images": 4, "crops": 2},
        "datasets": {"near": {
            "stage": 1, "overrides": ["recipe=demo"], "steps": 2, "seconds_per_step": 1, "overhead": 1,
            "size": [64, 64], "crop": 32, "needs": [], "arms": "all",
        }},
        "arms": {arm: {"group": "basis", "label": arm, "overrides": [f"experiment=ablation_{arm}"], "cost": 1}
                 for arm in "ae"},
        "products": {},
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    assert study.main([f"--plan={tmp_path / 'plan.yaml'}"]) == 0, _logs(tmp_path)
    assert ablation_table.main([f"--runs={tmp_path / 'study'}"], root) == 0
    text = (root / "docs" / "results.md").read_text()
    folders = {arm: tmp_path / "study" / "near" / arm / "seed0" for arm in "ae"}
    ap = {arm: 100 * json.loads((run / "metrics.json").read_text())["mask/AP"] for arm, run in folders.items()}
    assert row(text, "e")[2:5] == ["1 of 1", f"{ap['e']:.1f}", f"{ap['e'] - ap['a']:+.1f} (n=1)"]
    costs = {arm: json.loads((run / "cost.json").read_text()) for arm, run in folders.items()}
    assert costs["e"]["parameters"] > costs["a"]["parameters"] and costs["e"]["flops"] > costs["a"]["flops"] > 0
    assert sorted(path.name for path in (folders["e"] / "checkpoints").iterdir()) == ["best.ckpt"]
    assert LitSegmenter.from_checkpoint(folders["e"] / "checkpoints" / "best.ckpt").model.boundary.use_prediction
    shares = json.loads((folders["e"] / "inspection.json").read_text())["attention"]["overall"]
    assert len(shares) == 5 and sum(shares) == pytest.approx(1)
    assert f"| {100 * shares[-1]:.1f}% |" in text and (root / "docs" / "images" / "study_near_crops.png").is_file()
    assert str(tmp_path) not in (root / "docs" / "study.jsonl").read_text().replace(str(tmp_path / "set"), "")
    assert ablation_table.main([f"--runs={tmp_path / 'elsewhere'}"], root) == 0
    assert (root / "docs" / "results.md").read_text() == text, "the page from the records alone is another one"


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in folder.rglob("console.log"))
