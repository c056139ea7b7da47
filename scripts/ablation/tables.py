"""The tables of docs/results.md, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ablation.results import (
    Difference,
    Result,
    Study,
    mean_and_deviation,
    paired_difference,
    unequal_precision,
    values_by_seed,
)

SIZES = ("AP75", "APs", "APm", "APl")
MISSING = "missing"


def main_table(study: Study, dataset: str, group: str | None = None, kind: str = "mask") -> str:
    """AP of one kind: all numbers of a group of arms, and the differences to the references.

    Args:
        study: all runs.
        dataset: which set.
        group: of arms; None for all.
        kind: `box`, `mask` or `boundary`.
    """
    arms, metric = study.arms(dataset), f"{kind}/AP"
    references = study.references if group != "basis" else study.references[:1]
    head = ["arm", "", "runs", f"{kind} AP", *(f"difference to {name}" for name in references), *SIZES]
    rows = []
    for name, results in arms.items():
        if group not in (None, results[0].group):
            continue
        ours = values_by_seed(results, metric)
        cells = [f"`{name}`", results[0].label, runs_cell(results), spread(list(ours.values()))]
        for reference in references:
            cells.append("" if reference == name else compared(results, arms.get(reference, []), metric))
        cells += [_of_size(results, f"{kind}/{size}") for size in SIZES]
        rows.append(cells)
    return markdown(head, rows)


def steps_table(study: Study, dataset: str, kind: str = "mask") -> str:
    """AP of one kind along the trainings: of the first reference, and the differences of the other arms to it.

    Args:
        study: all runs.
        dataset: which set; it has arms of the group `basis`.
        kind: `box`, `mask` or `boundary`.
    """
    arms, reference = study.arms(dataset), study.references[0]
    curves = {
        name: {result.seed: result.validations(f"{kind}/AP") for result in results if result.metrics}
        for name, results in arms.items()
    }
    rows, steps = [], sorted({step for curve in curves[reference].values() for step in curve})
    for name in (name for name, results in arms.items() if results[0].group == "basis"):
        cells = [f"`{name}`", f"{kind} AP" if name == reference else "difference"]
        for step in steps:
            ours, its = (_at_step(curves[arm], step) for arm in (name, reference))
            difference = difference_cell(paired_difference(ours, its), unequal_precision(arms[name], arms[reference]))
            cells.append(spread(list(ours.values())) if name == reference else difference)
        rows.append(cells)
    return markdown(["arm", "", *(f"step {step + 1:,}" for step in steps)], rows)


def _at_step(curves: Mapping[int, Mapping[int, float]], step: int) -> dict[int, float]:
    """By seed, of those that have this step."""
    return {seed: curve[step] for seed, curve in curves.items() if step in curve}


def short_table(study: Study, datasets: Sequence[str], groups: Sequence[str]) -> str:
    """Mask and boundary AP of the first reference on several sets, and the differences of other arms to it.

    Args:
        study: all runs.
        datasets: which sets, each of which has a run that has ended.
        groups: of arms; of these those that have a run.
    """
    reference, rows = study.references[0], {}
    for number, dataset in enumerate(datasets):
        arms = study.arms(dataset)
        for name, results in arms.items():
            if results[0].group in groups and any(result.metrics for result in results):
                row = rows.setdefault(name, [results[0].label, *["-"] * 2 * len(datasets)])
                for place, metric in enumerate(("mask/AP", "boundary/AP"), 1 + 2 * number):
                    own = spread(list(values_by_seed(results, metric).values()))
                    row[place] = own if name == reference else compared(results, arms.get(reference, []), metric)
    head = ["arm", ""]
    for dataset in datasets:
        head += [f"{dataset}, {study.budget(dataset)}: mask AP", "boundary AP"]
    return markdown(head, [[f"`{name}`", *row] for name, row in rows.items()])


def product_table(
    study: Study, dataset: str, product: Mapping[str, Any], latency: Mapping[str, Any] | None = None
) -> str | None:
    """AP, the boundary basis and the cost of every row with every column; None before a run of its own has ended.

    The differences of mask AP are those to the first column of a row, seed by seed.

    Args:
        study: all runs.
        dataset: which set.
        product: see `Study.products`.
        latency: what `time_systems.py` has written for this set.
    """
    milliseconds = (latency or {}).get("milliseconds", {})
    arms, cells = study.arms(dataset), {(row, column): arm for row, column, arm in product["cells"]}
    if not any(r.metrics and r.group == product["name"] for results in arms.values() for r in results):
        return None
    rows, plain = [], next(iter(product["columns"]))
    for row, label in product["rows"].items():
        first = arms.get(cells.get((row, plain), ""), [])
        has_first = (row, plain) in cells
        for column, variant in product["columns"].items():
            results = arms.get(cells.get((row, column), ""))
            if results is None:
                continue
            scores = {kind: values_by_seed(results, f"{kind}/AP") for kind in ("mask", "boundary", "box")}
            cost = next((r.cost for r in results if r.cost), {})
            seen = [r.inspection for r in results if r.inspection]
            rows.append([
                label, variant, runs_cell(results), spread(list(scores["mask"].values())),
                compared(results, first, "mask/AP") if has_first and column != plain else "",
                *(spread(list(scores[kind].values())) for kind in ("boundary", "box")),
                _seen(seen, list(values_by_seed(results, "boundary_f/ODS").values())),
                _seen(seen, shares(results, "attention", "overall"), "%"), _seen(seen, dice(results)),
                _number(cost.get("parameters"), 1e6, "M"), _number(cost.get("flops"), 1e9, ""),
                _number(milliseconds.get(cells[row, column], [None])[0], 1, ""),
            ])  # fmt: skip
    head = ["", "with", "runs", "mask AP", "difference", "boundary AP", "box AP", "boundary F (ODS)", "attention",
            "Dice of the basis", "parameters", "GFLOP", "ms"]  # fmt: skip
    return markdown(head, rows)


def latency_line(latency: Mapping[str, Any] | None) -> str:
    """On what the milliseconds of a table of systems were measured."""
    if not latency:
        return "The times of a pass are missing; `python scripts/time_systems.py` measures them."
    return (
        f"ms: a detection of an image of {latency['height']} x {latency['width']} with random weights, pixels to RLEs, "
        f"median of {latency['rounds']} rounds in turn; {latency['on']}, {latency['threads']} threads, "
        f"torch {latency['torch']}."
    )


def precision_line(study: Study, dataset: str) -> str:
    """In what precision the runs of a set were trained: the most frequent one, and which runs have another."""
    runs: dict[str, list[str]] = {}
    for r in study.results:
        if r.dataset == dataset and r.metrics:
            runs.setdefault(r.precision or "unknown", []).append(f"`{r.arm}` {r.seed}")
    (usual, _), *others = sorted(runs.items(), key=lambda item: -len(item[1]))
    told = [f"; in {precision} (arm, seed): {', '.join(names)}" for precision, names in others]
    return f"Precision of the trainings: {usual}{''.join(told)}."


def cost_table(study: Study, dataset: str) -> str:
    """Processor time, parameters and operations of each arm, and the group of its runs in W&B."""
    rows = []
    for name, results in study.arms(dataset).items():
        if results[0].group in groups_of_products(study):
            continue
        times = [r.processor_seconds / 60 for r in results if r.metrics and r.processor_seconds is not None]
        cost = next((r.cost for r in results if r.cost), {})
        rows.append([
            f"`{name}`", spread(times), _number(cost.get("parameters"), 1e6, "M"), _number(cost.get("flops"), 1e9, ""),
            next((f"`{r.config['name']}`" for r in results if r.config), MISSING), _logged(results),
        ])  # fmt: skip
    size = next((f"{r.cost['of']['height']} x {r.cost['of']['width']}" for r in study.results
                 if r.dataset == dataset and r.cost), "one")  # fmt: skip
    head = ["arm", "processor minutes", "parameters", f"GFLOP of a {size} image", "W&B group", "logged there"]
    return markdown(head, rows)


def reasons_table(study: Study, dataset: str) -> str:
    """What was seen inside of the models: shares of the boundary basis, score targets, the boundary target."""
    head = ["arm", "attention", "attention near boundaries", "part in the mask", "part near boundaries",
            "Dice of the basis", "mask IoU", "below 0.5", "boundary quality", "below 0.5"]  # fmt: skip
    rows = []
    for name, results in study.arms(dataset).items():
        if results[0].group in groups_of_products(study):
            continue
        seen = [r.inspection for r in results if r.inspection]
        cells = [_seen(seen, shares(results, kind, where), "%")
                 for kind in ("attention", "contribution") for where in ("overall", "near_boundary")]  # fmt: skip
        cells.append(_seen(seen, dice(results)))
        for quality in ("iou", "boundary"):
            targets = [i["score_targets"][quality] for i in seen if i["score_targets"].get(quality)]
            targets = [target for target in targets if target["mean"] is not None]
            cells += [spread([100 * t["mean"] for t in targets]), spread([100 * below(t, 0.5) for t in targets], "%")]
        rows.append([f"`{name}`", *cells])
    return markdown(head, rows)


def shares(results: Sequence[Result], kind: str, where: str) -> list[float]:
    """Of the additional basis in percent, one for each run that has it; see `inspection.Shares`."""
    seen = [r.inspection for r in results if r.inspection]
    return [100 * i[kind][where][-1] for i in seen if i["boundary_basis"] and i[kind]]


def dice(results: Sequence[Result]) -> list[float]:
    """Of the additional basis and the boundary target in percent, one for each run that has it."""
    seen = [r.inspection for r in results if r.inspection]
    return [100 * i["boundary_basis_dice"] for i in seen if i["boundary_basis_dice"] is not None]


def _seen(inspected: Sequence[Any], values: Sequence[float], unit: str = "") -> str:
    """Values of what not every arm has: missing before a run was inspected, else nothing."""
    return spread(values, unit) if values or not inspected else "-"


def target_line(study: Study, dataset: str) -> str | None:
    """How wide the boundary target of a set is; the same for all runs, so the first one tells it."""
    found = (r.inspection.get("boundary_target") for r in study.results if r.dataset == dataset)
    seen = next(filter(None, found), None)
    if seen is None or seen["width_of_instance"] is None:
        return None
    return (
        f"The boundary target marks {seen['share']:.1%} of the cells and is {seen['width_px']:.1f} px wide, "
        f"{seen['width_of_instance']:.1%} of an instance's side ({seen['instance_px']:.0f} px in the median)."
    )


def published_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Figures of others."""

    def cell(value: Any) -> str:
        return "not recovered" if value is None else str(value)

    head = ["model", "backbone", "schedule", "split", "box AP", "mask AP", "source"]
    return markdown(head, [[cell(entry[key]) for key in (*head[:4], "box", "mask", "source")] for entry in entries])


def groups_of_products(study: Study) -> set[str]:
    """Groups of arms that have a table of their own."""
    return {product["name"] for product in study.products}


def below(histogram: Mapping[str, Any], limit: float) -> float:
    """Share of the values under one of the edges of a histogram."""
    pairs = zip(histogram["counts"], histogram["edges"][1:], strict=True)
    return sum(count for count, end in pairs if end <= limit + 1e-9) / sum(histogram["counts"])


def runs_cell(results: Sequence[Result]) -> str:
    """How many runs have ended, with which seeds if not all, and what became of the others."""
    ended = [r.seed for r in results if r.metrics]
    failed = sum(r.state == "failed" for r in results)
    some = f" (seed{'s' * (len(ended) > 1)} {', '.join(map(str, ended))})" if 0 < len(ended) < len(results) else ""
    return f"{len(ended)} of {len(results)}{some}" + (f", {failed} failed" if failed else "")


def spread(values: Sequence[float], unit: str = "") -> str:
    """Mean and standard deviation."""
    mean, deviation = mean_and_deviation(values)
    if mean is None:
        return MISSING
    return f"{mean:.1f}{unit}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}{unit}"


def compared(ours: Sequence[Result], its: Sequence[Result], metric: str) -> str:
    """The difference of an arm to a reference, and of how many pairs the precision is not the same."""
    difference = paired_difference(values_by_seed(ours, metric), values_by_seed(its, metric))
    return difference_cell(difference, unequal_precision(ours, its))


def difference_cell(difference: Difference | None, unequal: int) -> str:
    """A difference with its interval, the number of pairs, and of how many of them the precision is not the same."""
    if difference is None:
        return MISSING
    interval = "" if difference.low is None else f" [{difference.low:+.1f}, {difference.high:+.1f}]"
    remark = f", {unequal} of unequal precision" if unequal else ""
    return f"{difference.mean:+.1f}{interval} (n={difference.pairs}{remark})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns are not aligned."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def _of_size(results: Sequence[Result], metric: str) -> str:
    """Mean and deviation; nothing where runs have ended and the set has no object of this size."""
    values = list(values_by_seed(results, metric).values())
    return spread(values) if values or not any(r.metrics for r in results) else "-"


def _number(value: float | None, unit: float, name: str) -> str:
    return MISSING if value is None else f"{value / unit:.1f} {name}".strip()


def _logged(results: Sequence[Result]) -> str:
    begun = [r for r in results if r.config]
    return f"{sum('wandb' in (r.config.get('logger') or {}) for r in begun)} of {len(begun)}" if begun else MISSING
