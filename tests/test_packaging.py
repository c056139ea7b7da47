"""The package as others get it: its wheel, its requirements, what its parts import."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path

import pytest

import b2inst
from b2inst import paths

ROOT = Path(__file__).resolve().parents[1]
LIGHT_PACKAGES = ("b2inst.ops", "b2inst.losses", "b2inst.models")
IMPORTED_AS = {"cv2": "opencv-python-headless", "hydra": "hydra-core", "PIL": "pillow"}
HEAVY = ("pytorch_lightning", "lightning", "hydra", "omegaconf", "wandb", "albumentations")


def run_python(*args: str, cwd: Path, pythonpath: Path) -> subprocess.CompletedProcess[str]:
    """Run Python where only `pythonpath` and the installed dependencies can be imported."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "B2INST", "HYDRA"))}
    env |= {"PYTHONPATH": str(pythonpath), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def check(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, f"{result.args}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def yaml_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that nothing is left in the checkout and no old build is used."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, sources / name, ignore=skip)
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, sources)
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(sources))
    check(run_python(*build, cwd=folder, pythonpath=folder))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("installed") / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    check(run_python(*pip, cwd=target.parent, pythonpath=target))
    return target


def test_wheel_holds_every_module_and_configuration_file(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    configuration = {f"b2inst/conf/{name}" for name in yaml_files(ROOT / "conf")}
    package = ROOT / "src" / "b2inst"
    modules = {f"b2inst/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assert "b2inst/conf/train.yaml" in configuration
    assert names == configuration | modules | {"b2inst/py.typed"}


def test_wheel_finds_its_own_configuration(installed: Path, tmp_path: Path) -> None:
    code = "from b2inst.paths import config_dir; print(config_dir())"
    found = check(run_python("-c", code, cwd=tmp_path, pythonpath=installed)).strip()
    assert Path(found) == (installed / "b2inst" / "conf").resolve()


def test_wheel_prints_the_configuration_from_another_folder(installed: Path, tmp_path: Path) -> None:
    command = ("-m", "b2inst.train", "--cfg", "job")
    from_wheel = check(run_python(*command, cwd=tmp_path, pythonpath=installed))
    from_checkout = check(run_python(*command, cwd=tmp_path, pythonpath=ROOT / "src"))
    assert re.search(r"^model:$", from_wheel, re.MULTILINE)
    assert from_wheel == from_checkout


@pytest.mark.parametrize("layout", ["b2inst/conf", "conf"])
def test_config_dir_looks_beside_the_package_and_at_the_top(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / ("src/b2inst" if layout == "conf" else "b2inst")
    folder = tmp_path / layout
    for made in (package, folder):
        made.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(paths, "__file__", str(package / "paths.py"))
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder))):
        paths.config_dir()
    (folder / "train.yaml").touch()
    assert paths.config_dir() == folder
    assert paths.config_dir().is_absolute()


def test_config_dir_names_both_places_when_neither_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "src/b2inst/paths.py"))
    with pytest.raises(FileNotFoundError) as error:
        paths.config_dir()
    assert str(tmp_path / "src/b2inst/conf") in str(error.value)
    assert str(tmp_path / "conf") in str(error.value)


def test_models_losses_and_ops_import_without_the_training_stack(tmp_path: Path) -> None:
    names = []
    for package in LIGHT_PACKAGES:
        for path in sorted((ROOT / "src" / package.replace(".", "/")).rglob("*.py")):
            module = path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".")
            names.append(module.removesuffix(".__init__"))
    code = f"""
        import importlib, sys
        for name in {names!r}:
            importlib.import_module(name)
            heavy = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
            assert not heavy, f"{{name}} imports {{heavy}}"
    """
    assert len(names) > len(LIGHT_PACKAGES)
    check(run_python("-c", textwrap.dedent(code), cwd=tmp_path, pythonpath=ROOT / "src"))


def test_version_is_read_from_the_package(wheel: Path) -> None:
    assert setup_cfg()["metadata"]["version"] == "attr: b2inst.__version__"
    assert wheel.name.split("-")[:2] == ["b2inst", b2inst.__version__]


def test_every_package_is_listed() -> None:
    listed = setup_cfg()["options"]["packages"].split()
    found = {path.parent.relative_to(ROOT / "src").as_posix().replace("/", ".") for path in ROOT.glob("src/**/*.py")}
    assert sorted(listed) == sorted(found | {"b2inst.conf"})


def test_everything_imported_is_required() -> None:
    imported = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"b2inst"}
    needed = {IMPORTED_AS.get(name, name).replace("_", "-") for name in outside}
    options = setup_cfg()
    extras = [
        extra for name, extra in options["options.extras_require"].items() if name not in ("test", "dev", "bench")
    ]
    lines = " ".join([options["options"]["install_requires"], *extras]).split()
    listed = {re.split(r"[<>=!~]", line)[0] for line in lines}
    assert "torch" in needed
    assert needed <= listed, f"imported but neither in install_requires nor in an extra: {needed - listed}"


def test_every_bound_has_its_reason_above_it() -> None:
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    bound = re.compile(r"^\s*[\w.-]+(\[[\w,]+\])?\s*[<>=!~]=?\s*\d")
    in_lists = re.compile(r"^\s+")
    bounded = [index for index, line in enumerate(lines) if in_lists.match(line) and bound.match(line)]
    names = {re.split(r"[<>=!~]", lines[index].strip())[0] for index in bounded}
    assert names >= {"torch", "pytorch-lightning", "hydra-core", "omegaconf", "albumentations", "sqlalchemy"}
    bare = [lines[index].strip() for index in bounded if not re.match(r"\s*# \S", lines[index - 1])]
    assert not bare, f"no reason above {bare}"


def test_warnings_of_b2inst_are_errors_here_and_those_of_others_are_not() -> None:
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn_explicit("ours", UserWarning, "file.py", 1, module="b2inst.ops.boxes")
    with pytest.warns(UserWarning, match="theirs"):
        warnings.warn_explicit("theirs", UserWarning, "file.py", 1, module="b2instruments")
