"""A study is run in order, may be killed in any way and goes on, and no failure stops the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import study
from ablation import plan as plans
from ablation import records, results, runs
from hydra import compose, initialize_config_dir

from b2inst.config import ConfigError, plain
from b2inst.config_check import check
from b2inst.metrics.scores import write_json
from b2inst.paths import config_dir

HERE = Path(__file__).parent
FAKE = HERE / "fake_study.py"
PLAN = """
output: unused
records: RECORDS
seeds: [0, 1]
references: [a, e]
common: []
inspect: {images: 2, crops: 1}
datasets:
  near:
    {stage: 1, overrides: [recipe=demo], steps: 100, seconds_per_step: 1.0, overhead: 0, size: [64, 64], crop: 32,
     needs: [], arms: all}
  far:
    {stage: 2, overrides: [recipe=demo], steps: 200, seconds_per_step: 1.0, overhead: 0, size: [64, 64], crop: 32,
     needs: [], arms: [a]}
arms:
  a: {group: basis, label: none, overrides: [experiment=ablation_a], cost: 1.0}
  e: {group: basis, label: boundary, overrides: [experiment=ablation_e], cost: 2.0}
products: {}
"""
PRODUCT = """
products:
  systems:
    title: The systems
    datasets: all
    stage: 3
    seeds: [1]
    columns:
      plain: {label: nothing, overrides: [x=1], cost: 1.0}
      more: {label: a basis, overrides: [x=2], cost: 2.0}
    rows:
      known: {label: Known, overrides: [], cost: 1.0, columns: all, cells: {plain: a, more: e}}
      new: {label: New, overrides: [y=1], cost: 3.0, columns: all, cells: {}}
      half: {label: Half, overrides: [y=2], cost: 1.0, columns: [plain], cells: {plain: [z=3]}}
"""
# Starts the study as the script does, with the two programs that it runs replaced.
DRIVER = """
import sys
sys.path[:0] = [{scripts!r}, {here!r}, {src!r}]
from ablation import records, results, runs
real = runs.execute
def execute(arguments, *rest):
    what = ["train", *arguments[2:]] if arguments[0] == "-m" else ["inspect", arguments[1]]
    return real([{fake!r}, *what], *rest)
runs.execute, runs.HEARTBEAT = execute, 0.05
import study
sys.exit(study.main(sys.argv[1:]))
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.replace("RECORDS", str(tmp_path / "records.jsonl")))
    return path


def start(plan: Path, *arguments: str, popen: Any = subprocess.Popen, **how: object) -> subprocess.Popen[str]:
    root = HERE.parents[1]
    code = DRIVER.format(scripts=str(root / "scripts"), here=str(HERE), src=str(root / "src"), fake=str(FAKE))
    command = [sys.executable, "-c", code, f"--plan={plan}", f"--output={plan.parent / 'out'}", *arguments]
    # A shell starts what it runs in the background deaf to Ctrl-C, these tests perhaps.
    how.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def begun(out: str) -> list[str]:
    return [line.split("] ")[1].split(":")[0] for line in out.splitlines() if line.startswith("[")]


def behave(plan: Path, **words: list[str]) -> None:
    folder = plan.parent / "out"
    folder.mkdir(exist_ok=True)
    (folder / "behave.json").write_text(json.dumps({name.replace("_", "/"): value for name, value in words.items()}))


def waiting(plan: Path, name: str) -> int:
    """The process that trains this run, once it is in the middle of it."""
    path = plan.parent / "out" / name / "pid"
    for _ in range(4800):
        if path.is_file() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{name} never started")


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").is_file() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_all_arms_come_with_the_first_seed_and_a_failure_stops_nothing(plan: Path) -> None:
    behave(plan, near_e_seed0=["fail"])
    code, out, err = finished(start(plan))
    assert begun(out) == ["near/a/seed0", "near/e/seed0", "near/a/seed1", "near/e/seed1", "far/a/seed0", "far/a/seed1"]
    assert code == 1 and "1 of 6 runs did not end well" in err and "no memory for this" in err
    folder = plan.parent / "out" / "near" / "e" / "seed0"
    assert runs.state(folder) == "failed" and runs.state(folder.parent / "seed1") == "done"
    code, out, err = finished(start(plan))  # what has failed is tried again, and nothing else
    assert code == 0 and begun(out) == ["near/e/seed0"] and err == ""
    record = json.loads((folder / runs.RECORD).read_text())
    assert [attempt["exit"] for attempt in record["attempts"]] == [1, 0]
    assert (folder / "calls").read_text() == f"last {runs.precision()}\n" * 2
    assert runs.precisions(folder) == runs.precision()
    assert record["attempts"][1]["commit"] == runs.commit()
    assert begun(finished(start(plan))[1]) == []


def test_the_commit_of_the_code_is_kept_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runs.commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for name in ("src/a.py", "conf/a.yaml", "docs/a.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    head = runs.commit()
    assert len(head) == 12 and int(head, 16)
    (tmp_path / "docs/a.md").write_text("2")
    assert runs.commit() == head, "what the study writes is no change of the code"
    (tmp_path / "conf/a.yaml").write_text("2")
    assert runs.commit() == f"{head}+"


def test_the_processor_time_of_a_run_is_its_own_work_in_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"dataset": SimpleNamespace(name="d"), "arm": SimpleNamespace(name="a", group="g", label="l"),
             "overrides": [], "seed": 0}  # fmt: skip
    first, second = (SimpleNamespace(folder=tmp_path / name, **about) for name in ("first", "second"))
    execute = runs.execute

    def train(run: Any, work: float) -> None:
        run.folder.mkdir(exist_ok=True)
        busy = ["-c", f"import time\nwhile time.process_time() < {work}: pass"]
        monkeypatch.setattr(runs, "execute", lambda _, *rest: execute(busy, *rest))
        with runs.lock(run.folder, 0) as held:
            assert runs.train(run, held) == 0

    train(first, 0.8)
    assert 0.8 <= runs.processor_seconds(first.folder) < 1.2
    train(second, 0.2)  # without what the other did
    assert 0.2 <= runs.processor_seconds(second.folder) < 0.6
    train(second, 0.6)
    assert 0.8 <= runs.processor_seconds(second.folder) < 1.5
    record = json.loads((second.folder / runs.RECORD).read_text())
    del record["attempts"][0]["processor_seconds"]  # as a study leaves it that is killed
    write_json(record, second.folder / runs.RECORD)
    assert runs.processor_seconds(second.folder) is None


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_study_takes_its_training_along_and_goes_on(plan: Path, signum: int) -> None:
    behave(plan, near_a_seed0=["wait"])
    process = start(plan, "--only", "near/a")
    pid = waiting(plan, "near/a/seed0")
    time.sleep(0.3)
    process.send_signal(signum)
    code, _, err = finished(process)
    assert code == (130 if signum == signal.SIGINT else -signum)
    assert gone(pid)
    folder = plan.parent / "out" / "near" / "a" / "seed0"
    assert runs.state(folder) == "unfinished" and runs.seconds(folder) >= 0.2
    code, out, err = finished(start(plan, "--only", "near/a"))
    assert code == 0 and begun(out) == ["near/a/seed0", "near/a/seed1"]
    assert len(json.loads((folder / runs.RECORD).read_text())["attempts"]) == 2


def test_what_has_ended_is_put_back_on_another_machine(plan: Path) -> None:
    behave(plan, far_a_seed1=["fail"])
    assert finished(start(plan))[0] == 1
    kept = plan.parent / "records.jsonl"
    names = [json.loads(line).get("run") for line in kept.read_text().splitlines()]
    assert names == [None, "far/a/seed0", "near/a/seed0", "near/a/seed1", "near/e/seed0", "near/e/seed1"]
    shutil.rmtree(plan.parent / "out")
    code, out, err = finished(start(plan))
    assert code == 0 and begun(out) == ["far/a/seed1"], err
    assert len(kept.read_text().splitlines()) == 7
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join([*lines[:3], lines[3][:-9], *lines[4:]]))
    code, _, err = finished(start(plan))
    assert code == 1 and f"error: {kept}: line 4 is damaged" in err


def test_records_hold_no_path_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out" / "near" / "a" / "seed0"
    for file in (runs.METRICS, runs.INSPECTION, records.COST):
        write_json({"mask/AP": 1 / 3}, folder / file)
    write_json({"overrides": ["data.root=/disk/one/near"], "attempts": []}, folder / runs.RECORD)
    budget = "schedule: {steps: 20}\ndata: {batch_size: 8, root: /disk/one/near}\ntrainer: {}\nlogger: {csv: {a: 1}}"
    (folder / "config.yaml").write_text(f"name: study\n{budget}\n")
    (folder / "metrics.csv").write_text("step,train/loss,mask/AP\n9,1.0,\n9,,0.25\n19,,0.5\n")
    monkeypatch.setenv("B2INST_DATA", "/disk/one")
    assert records.pack(tmp_path / "out", tmp_path / "kept.jsonl") == 1
    assert "/disk/" not in (tmp_path / "kept.jsonl").read_text()
    monkeypatch.setenv("B2INST_DATA", "/disk/two")
    assert records.unpack(tmp_path / "kept.jsonl", tmp_path / "again") == 1
    again = tmp_path / "again" / "near" / "a" / "seed0"
    assert runs.read_json(again / runs.RECORD)["overrides"] == ["data.root=/disk/two/near"]
    assert runs.read_json(again / runs.METRICS) == {"mask/AP": 0.333333} and runs.state(again) == "done"
    assert results.curve(again, "mask/AP") == {9: 25.0, 19: 50.0} and results.curve(again, "box/AP") == {}
    kept = (tmp_path / "kept.jsonl").read_text()
    monkeypatch.delenv("B2INST_DATA")  # whoever packs next need not have it
    assert records.pack(tmp_path / "again", tmp_path / "kept.jsonl") == 1
    assert (tmp_path / "kept.jsonl").read_text() == kept
    assert records.unpack(tmp_path / "kept.jsonl", tmp_path / "again") == 0
    before = (tmp_path / "kept.jsonl").read_text()
    assert records.pack(tmp_path / "again", tmp_path / "kept.jsonl") == 1
    assert (tmp_path / "kept.jsonl").read_text().replace("two", "one") == before, "it changes without a reason"


def test_a_run_notes_the_variables_that_its_overrides_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B2INST_WEIGHTS", "/disk/weights")
    monkeypatch.delenv("B2INST_DATA", raising=False)
    monkeypatch.setattr(runs, "execute", lambda *_: 0)
    about = {"dataset": SimpleNamespace(name="d"), "arm": SimpleNamespace(name="a", group="g", label="l")}
    run = SimpleNamespace(folder=tmp_path, overrides=[], seed=0, **about)
    with runs.lock(tmp_path, 0) as held:
        runs.train(run, held)
    assert runs.read_json(tmp_path / runs.RECORD)["variables"] == {"B2INST_WEIGHTS": "/disk/weights"}


def test_two_studies_do_not_train_in_one_folder(plan: Path) -> None:
    behave(plan, near_a_seed0=["wait"])
    first = start(plan, "--only", "near/a", "--seeds", "0")
    waiting(plan, "near/a/seed0")
    folder = plan.parent / "out" / "near" / "a" / "seed0"
    with pytest.raises(runs.Busy, match="another process"), runs.lock(folder, patience=0.3):
        pass
    first.kill()
    finished(first)
    with runs.lock(folder, patience=20):  # free again when the training, which outlives the study, has ended
        assert (folder / "saved").exists() and (folder / "calls").read_text().split() == ["last", runs.precision()]


def test_what_another_study_still_works_on_is_left_to_it(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "SHORT", 0.1)
    monkeypatch.setattr(study, "LONG", 0.3)
    monkeypatch.setattr(study, "one", lambda *_: None)
    loaded = plans.load_plan(plan, plan.parent / "out")
    busy, free = (run for run in loaded.runs if run.name in ("near/a/seed0", "near/a/seed1"))
    with runs.lock(busy.folder, patience=0):
        assert study.work([busy, free], loaded, None) == []
    out = capsys.readouterr().out
    assert begun(out) == [free.name] and f"another process works on {busy.name};" in out


def test_two_at_a_time_share_the_list_and_the_threads(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both work on the list; here their commands are replaced as in `start`."""
    real, threads = subprocess.Popen, []

    def popen(command: list[str], env: dict[str, str], **how: object) -> subprocess.Popen[str]:
        assert command[1] == study.__file__ and command[-1] == "--jobs=1"
        threads.append(env["OMP_NUM_THREADS"])
        return start(plan, *command[2:], popen=real, **how)

    behave(plan, near_e_seed1=["fail", "fail"])
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(study.subprocess, "Popen", popen)
    code = study.main([f"--plan={plan}", f"--output={plan.parent / 'out'}", "--jobs", "2"])
    assert code == 1 and threads == ["2", "2"]
    calls = {path.parent.name: len(path.read_text().splitlines()) for path in plan.parent.glob("out/near/e/*/calls")}
    assert calls["seed0"] == 1 and calls["seed1"] in (1, 2)
    assert len(list(plan.parent.glob("out/*/*/*/inspection.json"))) == 5


def test_a_run_that_is_trained_is_only_inspected(plan: Path) -> None:
    finished(start(plan, "--only", "far"))
    folder = plan.parent / "out" / "far" / "a" / "seed1"
    (folder / runs.INSPECTION).unlink()
    assert begun(finished(start(plan, "--only", "far"))[1]) == ["far/a/seed1"]
    assert (folder / "calls").read_text().split() == ["last", runs.precision()] and runs.state(folder) == "done"


def test_runs_of_other_settings_are_refused(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(start(plan, "--only", "near/a", "--seeds", "0"))
    plan.write_text(plan.read_text().replace("steps: 100", "steps: 300"))
    assert study.main([f"--plan={plan}", f"--output={plan.parent / 'out'}", "--dry-run"]) == 1
    assert "other settings (schedule.steps=100, schedule.steps=300)" in capsys.readouterr().err


def trained(plan: plans.Plan, name: str, seconds: float) -> None:
    run = next(run for run in plan.runs if run.name == name)
    attempt = {"started": "", "seconds": seconds, "exit": 0}
    write_json({**runs.settled(run), "attempts": [attempt]}, run.folder / runs.RECORD)
    for file in (runs.METRICS, runs.INSPECTION):
        write_json({}, run.folder / file)


def test_estimates_come_from_the_runs_that_are_alike(plan: Path) -> None:
    loaded = plans.load_plan(plan, plan.parent / "out")
    by_name = {run.name: run for run in loaded.runs}
    assert study.Estimate(loaded).seconds(by_name["near/e/seed0"]) == (200.0, "plan")
    trained(loaded, "near/a/seed0", 300.0)  # three times what the plan says
    assert study.Estimate(loaded).seconds(by_name["near/e/seed0"]) == (600.0, "measured")
    assert study.Estimate(loaded).seconds(by_name["far/a/seed0"]) == (200.0, "plan")
    trained(loaded, "near/e/seed0", 100.0)
    assert study.Estimate(loaded).seconds(by_name["near/e/seed1"]) == (100.0, "measured")


def test_sets_of_one_stage_share_their_seeds(plan: Path) -> None:
    plan.write_text(plan.read_text().replace("stage: 2", "stage: 1"))
    assert [run.name for run in plans.load_plan(plan).runs] == [
        "near/a/seed0", "near/e/seed0", "far/a/seed0", "near/a/seed1", "near/e/seed1", "far/a/seed1",
    ]  # fmt: skip


def test_no_run_is_started_that_would_end_too_late(
    plan: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, started = plans.load_plan(plan, plan.parent / "out"), []
    trained(loaded, "near/a/seed0", 300.0)

    def one(run: plans.Run, *_: object) -> None:
        started.append(run.name)

    monkeypatch.setattr(study, "one", one)
    todo = study.runnable(list(loaded.runs))
    assert study.work(todo, loaded, hours=250 / 3600) == []
    assert started == ["far/a/seed0", "far/a/seed1"]  # 200 s each by the plan; those of `near` take 300 and 600
    assert "3 runs were not started" in capsys.readouterr().out
    text = study.describe(todo, loaded)
    assert "5 runs, 0.5 hours with 1 at a time" in text and "near/e/seed1" in text and "10.0 min (measured)" in text


def test_mistakes_are_told(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = plan.read_text()
    for old, new, words in [
        ("arms: [a]", "arms: [x]", "no arm 'x'"), ("references: [a, e]", "references: [x]", "no arm 'x'"),
        ("crop: 32", "crops: 32", "unknown 'crops', missing 'crop'"), ("seeds:", "sedes:", "unknown 'sedes'"),
    ]:  # fmt: skip
        plan.write_text(good.replace(old, new))
        assert study.main([f"--plan={plan}"]) == 1
        assert words in capsys.readouterr().err
    plan.write_text(good)
    for given, words in [(["--only", "near/x"], "no such run"), (["--seeds", "7"], "the plan has 0, 1")]:
        assert study.main([f"--plan={plan}", f"--output={plan.parent}", "--dry-run", *given]) == 1
        assert words in capsys.readouterr().err
    plan.write_text(good.replace("needs: []", f"needs: [{plan.parent}/nowhere]", 1))
    assert study.main([f"--plan={plan}", f"--output={plan.parent}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"near: left out, there is no {plan.parent}/nowhere" in text and "2 runs, 0.1 hours" in text


def test_a_product_trains_every_row_with_every_column_and_nothing_twice(plan: Path) -> None:
    plan.write_text(plan.read_text().replace("products: {}\n", PRODUCT))
    loaded = plans.load_plan(plan, plan.parent)
    own = [run for run in loaded.runs if run.arm.group == "systems"]
    assert [run.name for run in own] == ["near/new_plain/seed1", "near/new_more/seed1", "near/half_plain/seed1"]
    assert own == list(loaded.runs[-3:]), "sets of lower stages come first"
    assert own[2].overrides[-2:] == ("schedule.steps=100", "z=3"), "its own overrides take the place of the others"
    assert own[1].overrides[-2:] == ("y=1", "x=2") and own[1].arm.label == "New, a basis" and own[1].arm.cost == 6.0
    (product,) = loaded.summary()["products"]
    assert product["rows"] == {"known": "Known", "new": "New", "half": "Half"}
    assert ["known", "more", "e"] in product["cells"] and ["half", "plain", "half_plain"] in product["cells"]
    assert len(product["cells"]) == 5


def test_a_product_may_be_for_some_sets(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plan.read_text().replace("products: {}\n", PRODUCT).replace("arms: [a]", "arms: all")
    for chosen, wanted in (("all", {"near", "far"}), ("[far]", {"far"})):
        plan.write_text(text.replace("datasets: all", f"datasets: {chosen}"))
        runs = plans.load_plan(plan, plan.parent).runs
        assert {run.dataset.name for run in runs if run.arm.group == "systems"} == wanted
        assert {run.dataset.name for run in runs if run.arm.name == "e"} == {"near", "far"}
    plan.write_text(text.replace("datasets: all", "datasets: [fare]"))
    assert study.main([f"--plan={plan}", "--dry-run"]) == 1
    assert "products.systems.datasets: no set 'fare'; sets are near, far" in capsys.readouterr().err


def test_the_precision_is_the_faster_one_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, wanted in [("fma avx2 avx512f", "32-true"), ("avx2 avx512_bf16", "bf16-mixed"), (None, "32-true")]:

        def read_text(path: Path, flags: str | None = flags) -> str:
            if flags is None:
                raise FileNotFoundError(path)
            return f"processor : 0\nflags\t\t: {flags}\n"

        monkeypatch.setattr(Path, "read_text", read_text)
        for gpu in (False, True):
            monkeypatch.setattr(runs.torch.cuda, "is_available", lambda gpu=gpu: gpu)
            assert runs.precision() == ("bf16-mixed" if gpu else wanted)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("plain: a,", "plain: b,", "rows.known: b is no arm; arms are a, e"), ("seeds: [1]", "seed: 1", "unknown 'seed'"),
     ("columns: [plain]", "columns: [plane]", "rows.half: no column 'plane'; columns are plain, more"),
     ("  e: {", "  new_more: {", "rows.new: new_more is taken by another arm")],
)  # fmt: skip
def test_mistakes_in_a_product_are_told(
    old: str, new: str, words: str, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = plan.read_text().replace("products: {}\n", PRODUCT)
    if "new_more" in new:
        text = text.replace("[a, e]", "[a]").replace("more: e", "more: a")
    assert old in text
    plan.write_text(text.replace(old, new))
    assert study.main([f"--plan={plan}", "--dry-run"]) == 1
    assert words in capsys.readouterr().err


def test_every_run_of_the_plan_has_a_configuration_that_works(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.touch()
    loaded = plans.load_plan(study.PLAN)
    assert {run.arm.name for run in loaded.runs} >= set("abcdef") and len({run.seed for run in loaded.runs}) >= 3
    assert {run.arm.group for run in loaded.runs} >= {"basis", "scoring", "losses", "family"}
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        first = {run.arm: run for run in reversed(loaded.runs)}
        chosen = [*first.values(), *{run.dataset: run for run in loaded.runs}.values()]
        assert {run.arm for run in chosen} == {run.arm for run in loaded.runs}
        assert {run.dataset for run in chosen} == {run.dataset for run in loaded.runs}
        for run in chosen:
            given = [f"model.backbone.weights={weights}" if "weights=" in text else text for text in run.overrides]
            given += [f"data.root={tmp_path}", f"output={tmp_path}", "name=study"]
            config = plain(compose("train", given))
            check(config)
            assert config["schedule"]["steps"] == run.dataset.steps
            without = ("_plain", "_scores", "_control", "a_iou_boundary")
            losses = run.arm.name == "edges_plain" or not (run.arm.name in "af" or run.arm.name.endswith(without))
            assert bool(config["model"]["losses"]) == losses, run.name


def test_the_committed_plan_is_read_with_paths_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B2INST_DATA", "/somewhere")
    loaded = plans.load_plan(study.PLAN)
    assert ("/somewhere/dsb2018",) in {run.dataset.needs for run in loaded.runs}
    with pytest.raises(ConfigError, match="no such plan"):
        plans.load_plan(Path("nowhere.yaml"))
