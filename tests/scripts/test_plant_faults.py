"""The list of planted faults is up to date, and the script tells a fault that is seen from one that is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import plant_faults  # noqa: E402

FAULTS = plant_faults.load(plant_faults.FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.promise)
def test_every_fault_can_be_planted_and_has_tests(fault: plant_faults.Fault) -> None:
    sound = (ROOT / fault.file).read_text()
    assert fault.planted(sound) != sound
    for test in fault.tests:
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text()
        assert f"def {name.partition('[')[0]}(" in text if name else "def test_" in text


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A function with one test, which looks at one of its two promises."""
    (tmp_path / "src").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "src" / "small_part.py").write_text(
        "def both(a, b):\n    a = abs(a)\n    b = abs(b)\n    return a, b\n"
    )
    (tmp_path / "tests" / "test_part.py").write_text(
        "from small_part import both\n\ndef test_it():\n    assert both(-1, 1) == (1, 1)\n"
    )
    (tmp_path / "docs" / "reliability.md").write_text(f"Before\n{plant_faults.BEGIN}\n{plant_faults.END}\nAfter\n")
    return tmp_path


def write(project: Path, *faults: tuple[str, str]) -> list[str]:
    lines = [
        f"- promise: '{find}'\n  file: src/small_part.py\n  find: '{find}'\n  replace: '{replace}'\n"
        "  tests: [tests/test_part.py]\n" for find, replace in faults
    ]  # fmt: skip
    (project / "faults.yaml").write_text("".join(lines))
    return ["--faults", str(project / "faults.yaml")]


def test_a_fault_that_no_test_sees_is_told(project: Path, capsys: pytest.CaptureFixture) -> None:
    sound = (project / "src" / "small_part.py").read_text()
    arguments = write(project, ("a = abs(a)", "pass"), ("b = abs(b)", "pass"))
    assert plant_faults.main(arguments, project) == 1
    told = capsys.readouterr().out
    assert "1 of 2 faults were not seen\nNOT SEEN: b = abs(b)" in told
    page = (project / "docs" / "reliability.md").read_text()
    assert "| a = abs(a) | `a = abs(a)` in `small_part.py` | `test_part.py` |" in page
    assert "| NOT SEEN: `test_part.py` |" in page and page.startswith("Before\n") and page.endswith("After\n")
    assert (project / "src" / "small_part.py").read_text() == sound, "the code itself was changed"


def test_a_verdict_holds_for_the_modules_that_tests_use(project: Path) -> None:
    (fault,) = plant_faults.load(Path(write(project, ("a = abs(a)", "pass"))[1]))
    test = project / "tests" / "test_part.py"
    test.write_text("import near\n" + test.read_text())
    for name, text in [("near", "import far\n"), ("far", "x = 1\n"), ("other", "x = 1\n")]:
        (project / "tests" / f"{name}.py").write_text(text)
    before = plant_faults.fingerprint(fault, project)
    (project / "tests" / "other.py").write_text("x = 2\n")
    assert plant_faults.fingerprint(fault, project) == before
    (project / "tests" / "far.py").write_text("x = 2\n")
    assert plant_faults.fingerprint(fault, project) != before


def test_what_was_seen_is_not_tried_again_before_something_changes(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    page = project / "docs" / "reliability.md"
    arguments = write(project, ("a = abs(a)", "pass"), ("b = abs(b)", "pass"))
    assert plant_faults.main([*arguments, "--only", "a = "], project) == 0
    assert "promise" not in page.read_text(), "a table of a part"
    capsys.readouterr()
    assert plant_faults.main(arguments, project) == 1
    told = capsys.readouterr().out
    assert "[1/2]" not in told and "[2/2]" in told and page.read_text().count("| a = abs(a) |") == 1
    with (project / "outputs" / "faults.jsonl").open("a") as file:
        file.write('{"promise": "cut o')
    test = project / "tests" / "test_part.py"
    test.write_text(test.read_text() + "\ndef test_more():\n    assert both(1, -1) == (1, 1)\n")
    assert plant_faults.main(arguments, project) == 0
    told = capsys.readouterr().out
    assert "[1/2]" in told and "[2/2]" in told and "NOT SEEN" not in page.read_text()
    assert plant_faults.main([*arguments, "--again", "--only", "b = "], project) == 0
    assert "[1/1]" in capsys.readouterr().out


def test_tests_that_fail_without_a_fault_prove_nothing(project: Path, capsys: pytest.CaptureFixture) -> None:
    """They are told, and the other faults are tried all the same."""
    (project / "tests" / "test_broken.py").write_text("def test_it():\n    assert False\n")
    arguments = write(project, ("a = abs(a)", "pass"), ("b = abs(b)", "pass"))
    listed = (project / "faults.yaml").read_text().replace("test_part", "test_broken", 1)
    (project / "faults.yaml").write_text(listed.replace("pass", "b = 7 if b == 1 else 1"))
    assert plant_faults.main(arguments, project) == 1
    told = capsys.readouterr().out
    assert "without a fault pytest ends with 1" in told
    assert "1 of 2 faults were not seen\nNOT TRIED, for without it these fail too: a = abs(a)" in told


@pytest.mark.parametrize(
    ("find", "replace", "reason"),
    [("c = abs(c)", "pass", "0 times"), ("abs", "id", "2 times"), ("a = abs(a)", "a = (", "is no Python")],
)
def test_a_fault_that_cannot_be_planted_is_refused(
    find: str, replace: str, reason: str, project: Path, capsys: pytest.CaptureFixture
) -> None:
    assert plant_faults.main(write(project, (find, replace)), project) == 1
    assert reason in capsys.readouterr().err


def test_tests_that_cannot_run_are_an_error(project: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = write(project, ("def both", "def none"))
    assert plant_faults.main(arguments, project) == 1
    assert "pytest ended with 2" in capsys.readouterr().err
