"""The demo without a browser: what it shows, what it lets in, and what it says where it cannot start."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from pycocotools.coco import COCO

from b2inst import B2Inst, demo, demo_images
from b2inst import demo_view as view
from b2inst.config import ConfigError, plain
from b2inst.data.errors import DataError
from b2inst.demo_export import write_files
from b2inst.demo_server import check_port, closed_environment
from b2inst.ops.polygons import mask_to_polygons
from b2inst.paths import config_dir
from b2inst.prediction import Prediction
from demo_process import free_port
from toy import CLASSES, run, toy_checkpoint

SIZE = (72, 96)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoint(tmp_path_factory.mktemp("toy") / "toy.ckpt", best_threshold=0.457)


@pytest.fixture(scope="module")
def model(ckpt: Path) -> B2Inst:
    return B2Inst.from_checkpoint(ckpt, "cpu")


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> B2Inst:
    """Without a boundary basis."""
    path = toy_checkpoint(tmp_path_factory.mktemp("plain") / "toy.ckpt", experiment="ablation_a")
    return B2Inst.from_checkpoint(path, "cpu")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([x * 2, y * 3, (x + y) % 256], axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def found(model: B2Inst, pixels: np.ndarray) -> view.Found:
    return view.find(model, "a <b>.png", pixels)


@pytest.fixture(scope="module")
def middle(found: view.Found) -> float:
    """A threshold that about half of the instances pass."""
    return float(np.median(found.prediction.scores))


@pytest.fixture(scope="module")
def shown(found: view.Found, middle: float) -> Prediction:
    return view.above(found.prediction, middle)


def config(**changes: Any) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        values = plain(compose("demo"))
    assert not changes.keys() - values.keys()
    return {**values, **changes}


# ------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 1])
def test_filtering_is_the_same_as_another_run(
    model: B2Inst, found: view.Found, pixels: np.ndarray, share: float
) -> None:
    threshold = float(np.quantile(found.prediction.scores, share, method="nearest"))
    filtered, again = view.above(found.prediction, threshold), model.predict(pixels, threshold)
    assert filtered.to_coco(1) == again.to_coco(1) and filtered.class_names == again.class_names
    assert filtered.labels.tolist() == again.labels.tolist() and filtered.size == again.size


def test_thresholds_filter_by_the_score(found: view.Found, middle: float) -> None:
    scores = found.prediction.scores
    counts = [len(view.above(found.prediction, threshold)) for threshold in (0.05, middle, 1.0)]
    assert counts == [len(scores), (scores >= middle).sum(), 0] and counts[0] > counts[1] > 1


def test_the_slider_starts_at_the_threshold_of_the_checkpoint_or_just_below(model: B2Inst) -> None:
    assert view.start_threshold(model) == pytest.approx(0.45)
    for given, start, lowest in ((0.3, 0.3, 0.05), (0.29, 0.29, 0.05), (0.0231, 0.02, 0.02)):
        other: Any = SimpleNamespace(score_threshold=given)
        assert (view.start_threshold(other), view.lowest_score(other)) == pytest.approx((start, lowest))


def test_the_table(shown: Prediction) -> None:
    rows, masks = view.rows(shown), shown.bool_masks()
    assert len(rows) == len(shown) > 1 and {len(row) for row in rows} == {len(view.HEADERS)}
    for i, (dot, name, score, box, area) in enumerate(rows):
        assert name == shown.class_names[i] and score == pytest.approx(shown.scores[i], abs=5e-4)
        assert area == masks[i].sum()
        assert [float(side) for side in str(box).split(",")] == pytest.approx(shown.boxes[i].tolist(), abs=0.51)
        assert "rgb(" in str(dot)
    assert len({row[0] for row in rows}) == len(rows)
    assert view.rows(view.above(shown, 1.0)) == []


def test_the_count_is_text_and_no_markup_of_others(found: view.Found, shown: Prediction) -> None:
    html = view.count(found, shown)
    assert f"<b>{len(shown)}</b> instances" in html and "96 x 72" in html
    assert "a &lt;b&gt;.png" in html and "<b>.png" not in html
    for name in set(shown.class_names):
        assert f"{shown.class_names.count(name)} {name}" in html
    assert "<i>" not in view.problem("<i>")


def test_each_layer_changes_the_picture(found: view.Found, shown: Prediction) -> None:
    layers = [[], ["masks"], ["outlines"], ["boundary"], ["bases"], ["masks", "outlines"], list(view.LAYERS)]
    pictures = [view.draw(found, shown, chosen, 1280) for chosen in layers]
    assert {picture.shape for picture in pictures} == {(648, 864, 3)}  # enlarged until the shorter side has 640
    assert len({picture.tobytes() for picture in pictures}) == len(layers)
    assert (pictures[0][::9, ::9] == found.pixels).all()
    assert view.draw(found, shown, ["masks"], 48).shape == (36, 48, 3)


def test_masks_and_outlines_are_drawn_where_the_instances_are(found: view.Found) -> None:
    one = view.above(found.prediction, float(found.prediction.scores[0]))
    picture = {name: view.draw(found, one, [name] if name else [], 1280) for name in ("", "masks", "outlines")}
    mask = one.bool_masks().any(axis=0).repeat(9, axis=0).repeat(9, axis=1)
    changed = {name: (picture[name] != picture[""]).any(axis=2) for name in ("masks", "outlines")}
    assert changed["masks"][mask].mean() > 0.9
    assert 0 < (changed["outlines"] & mask).sum() < 0.5 * (changed["masks"] & mask).sum()


def test_layers_that_the_model_has(model: B2Inst, plain_model: B2Inst, pixels: np.ndarray) -> None:
    assert view.layers_of(model) == view.LAYERS
    assert view.layers_of(plain_model) == ("masks", "outlines", "bases")
    found = view.find(plain_model, "a.png", pixels)
    without = view.draw(found, found.prediction, [], 1280)
    assert (view.draw(found, found.prediction, ["boundary"], 1280) == without).all()
    assert (view.draw(found, found.prediction, ["bases"], 1280) != without).any()


def test_the_files_hold_what_is_shown(shown: Prediction, middle: float, tmp_path: Path) -> None:
    coco_file, labelme_file = write_files(shown, "a b.png", CLASSES, tmp_path)
    assert (coco_file.name, labelme_file.name) == ("a b_coco.json", "a b.json")
    coco = COCO(str(coco_file))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES.values())
    assert coco.loadImgs([1]) == [{"id": 1, "file_name": "a b.png", "width": 96, "height": 72}]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert len(annotations) == len(shown)
    for annotation, mask, name in zip(annotations, shown.bool_masks(), shown.class_names, strict=True):
        assert (coco.annToMask(annotation) == mask).all() and annotation["area"] == mask.sum()
        assert CLASSES[annotation["category_id"]] == name and annotation["score"] >= middle
    labelme = json.loads(labelme_file.read_text())
    assert (labelme["imagePath"], labelme["imageHeight"], labelme["imageWidth"]) == ("a b.png", *SIZE)
    assert len(labelme["shapes"]) == sum(len(mask_to_polygons(mask)) for mask in shown.bool_masks())


def test_the_network_runs_once_per_image(
    model: B2Inst, pixels: np.ndarray, middle: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio")
    from b2inst.demo_page import Page

    Image.fromarray(pixels).save(tmp_path / "a.png")
    runs: list[float | None] = []
    whole = B2Inst.run

    def counted(self: B2Inst, images: Any, score_threshold: float | None = None, look_inside: bool = False) -> Any:
        runs.append(score_threshold)
        return whole(self, images, score_threshold, look_inside)

    monkeypatch.setattr(B2Inst, "run", counted)
    page = Page(model, [], tmp_path, 10_000, 1280)
    _, found, first, *_ = page.upload(str(tmp_path / "a.png"), middle, ["masks"])
    second, picture, rows, *_ = page.show(found, 0.2, ["bases"])
    assert runs == [0.05]
    assert first != second and len(rows) == len(view.above(found.prediction, 0.2)) and picture.shape == (648, 864, 3)


def test_samples_are_chosen_by_number_alone(model: B2Inst, pixels: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from b2inst.demo_page import WELCOME, Page

    Image.fromarray(pixels).save(tmp_path / "a.png")
    page = Page(model, [tmp_path / "a.png"], tmp_path, 10_000, 1280)
    for index in (1, -1, "0", str(tmp_path / "a.png"), None, [0, 0], True):
        event: Any = SimpleNamespace(index=index)
        assert page.choose(0.46, ["masks"], event)[:2] == [None, WELCOME], index
    event = SimpleNamespace(index=0)
    found, html, *_ = page.choose(0.46, ["masks"], event)
    assert found.name == "a.png" and "instances" in html


# ---------------------------------------------------------------------------------------- what is let in


def bomb(width: int, height: int) -> bytes:
    """A PNG that states its size, and a few bytes of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.jpg", b"some text", r"^notes.jpg is not an image that can be read \(9 bytes\); give a JPEG, PNG"),
        ("empty.png", b"", "^empty.png is not an image that can be read"),
        ("short.png", bomb(10, 10)[:20], "^short.png is not an image that can be read"),
        ("page.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "^page.jpg is not an image that can be read"),
        ("cut.png", bomb(20, 20), "^cut.png is damaged and cannot be decoded; give a JPEG"),
        ("wide.png", bomb(101, 100), "^wide.png has 101 x 100 = 0.0 million pixels, at most 0.01 million are allowed"),
        ("bomb.png", bomb(60_000, 60_000), "^bomb.png has far more pixels, at most 0.01 million are allowed"),
    ],
)
def test_uploads_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        demo_images.read_upload(path, 10_000)
    assert str(tmp_path) not in str(error.value) and "\n" not in str(error.value)


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(60_000, 60_000))
    decoded: list[Path] = []
    monkeypatch.setattr(demo_images, "read_image", decoded.append)
    with pytest.raises(DataError):
        demo_images.read_upload(path, 50_000_000)
    assert decoded == []
    path.write_bytes(bomb(100, 100))
    demo_images.read_upload(path, 10_000)
    assert decoded == [path]


@pytest.mark.parametrize("ending", [ending for ending in demo_images.ENDINGS if ending != ".webp"])
def test_uploads_of_each_format_are_read(tmp_path: Path, pixels: np.ndarray, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    Image.fromarray(pixels).save(path)
    read = demo_images.read_upload(path, pixels.size)
    assert read.shape == pixels.shape and np.abs(read.astype(int) - pixels).mean() < 8


def test_samples(tmp_path: Path, pixels: np.ndarray) -> None:
    made = demo_images.sample_files(None, tmp_path, 3)
    assert len(made) == 3 and all(demo_images.thumbnail(path).shape == (256, 256, 3) for path in made)
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(ConfigError, match="samples=.*photos: no image in this folder"):
        demo_images.sample_files(str(folder), tmp_path, 3)
    for name in ("b.png", "a.png", "c.png"):
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    assert [path.name for path in demo_images.sample_files(str(folder), tmp_path, 2)] == ["a.png", "b.png"]
    with pytest.raises(ConfigError, match="samples=none: no such folder; give"):
        demo_images.sample_files("none", tmp_path, 3)


def test_a_broken_sample_is_left_out(tmp_path: Path, pixels: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ConfigError, match="none of its 1 images can be read; give another folder"):
        demo_images.sample_files(str(tmp_path), tmp_path, 2)
    for name in ("b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    assert [path.name for path in demo_images.sample_files(str(tmp_path), tmp_path, 2)] == ["b.png", "c.png"]
    assert "a.png: cannot be decoded" in caplog.text and "it is left out" in caplog.text


# --------------------------------------------------------------------------------------- what is closed


def test_the_environment_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what is set in the block must not stay
    os.environ |= {"GRADIO_ALLOWED_PATHS": "/etc", "GRADIO_SHARE": "true", "https_proxy": "http://192.0.2.1:3128"}
    with closed_environment() as scratch:
        assert not {"GRADIO_ALLOWED_PATHS", "GRADIO_SHARE", "https_proxy"} & os.environ.keys()
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert os.environ["GRADIO_TEMP_DIR"] == str(scratch / "cache") and (scratch / "cache").is_dir()
        assert scratch.stat().st_mode & 0o077 == 0  # others on this machine see nothing of it
    assert not scratch.exists()


def test_a_process_without_network(tmp_path: Path) -> None:
    code = """
        import asyncio, socket
        from b2inst.demo_server import refuse_network
        server = socket.create_server(("127.0.0.1", 0))
        refuse_network()
        socket.create_connection(server.getsockname()).close()
        socket.create_connection(("localhost", server.getsockname()[1])).close()
        for call in (
            lambda: socket.create_connection(("192.0.2.1", 80), timeout=5),
            lambda: socket.socket().connect(("192.0.2.1", 80)),
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 53)),
            lambda: socket.getaddrinfo("example.org", 80),
            lambda: socket.gethostbyname("example.org"),
            lambda: asyncio.run(asyncio.open_connection("192.0.2.1", 80)),
        ):
            try:
                call()
            except PermissionError as error:
                assert "no network access" in str(error)
            else:
                raise SystemExit("a connection was let out")
    """
    lines = [line[8:] for line in code.splitlines()]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------ what cannot start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ckpt": None}, "ckpt: missing; give ckpt=FILE"),
        ({"port": 0}, "port=0: give a whole number from 1 to 65535"),
        ({"port": "high"}, "port=high: give"),
        ({"max_samples": 0}, "max_samples=0: give a whole number from 1 to 100"),
        ({"max_side": True}, "max_side=True: give"),
        ({"max_megabytes": 0}, "max_megabytes=0: give a number above 0"),
        ({"max_megapixels": None}, "max_megapixels=None: give"),
    ],
)
def test_values_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        demo.check(config(**{"ckpt": "some.ckpt", **changes}))


def test_a_missing_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs Gradio, which is not installed; pip install 'b2inst\[demo\]'"):
        demo.check(config(ckpt="some.ckpt"))


def test_a_busy_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port={port}: cannot be listened on .*in use.*; give another"):
            check_port(port)
    check_port(port)


def test_the_command_line_without_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    done = run("demo", "ckpt=none.ckpt", f"port={free_port()}", cwd=tmp_path, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: ckpt=none.ckpt: no such file; give")
