"""An evaluation that several processes share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from b2inst.config import ConfigError, plain
from b2inst.data.errors import DataError
from b2inst.evaluate import evaluate
from b2inst.paths import config_dir
from toy import toy_checkpoint


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that names the built-in set, 4 images to validate."""
    return toy_checkpoint(tmp_path_factory.mktemp("toy") / "toy.ckpt", "data.val_batch_size=1", experiment="b2inst")


def run(ckpt: Path, output: Path, **changes: Any) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(compose("evaluate"))
    given = {"ckpt": str(ckpt), "output": str(output), "accelerator": "cpu", "progress": False, "pictures": 0}
    evaluate({**config, **given, **changes})


def test_parts_give_what_one_process_gives(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(ckpt, tmp_path / "one" / "metrics.json")
    capsys.readouterr()
    output = tmp_path / "parts" / "metrics.json"
    run(ckpt, output, shard="1/2")
    assert not output.exists() and "2 images of other processes are left" in capsys.readouterr().out
    run(ckpt, output, shard="0/2")
    assert "| mask" in capsys.readouterr().out
    one, parts = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "parts"))
    values = [(value, parts[key]) for key, value in one.items() if isinstance(value, float)]
    assert len(values) > 20 and all(ours == pytest.approx(value, abs=1e-3) for value, ours in values)
    one, parts = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "parts"))
    assert len(one) == len(parts) > 40  # also those that are too weak to be shown
    assert sorted(r["score"] for r in parts) == pytest.approx(sorted(r["score"] for r in one), abs=1e-4)
    assert min(record["score"] for record in parts) < 0.05 < min(record["box_score"] for record in parts)
    assert {record["image_id"] for record in one} == {record["image_id"] for record in parts}


def test_a_set_that_is_named_is_not_made(ckpt: Path, tmp_path: Path) -> None:
    data = {"root": str(tmp_path / "typo"), "val_batch_size": None, "num_workers": None, "limit": None}
    with pytest.raises(DataError, match="typo"):
        run(ckpt, tmp_path / "metrics.json", data=data)
    assert not (tmp_path / "typo").exists()


def test_only_the_images_asked_for_count(ckpt: Path, tmp_path: Path) -> None:
    data = {"root": None, "val_batch_size": None, "num_workers": None, "limit": 2}
    for name, shard in (("one", None), ("split", "0/1")):
        run(ckpt, tmp_path / name / "metrics.json", shard=shard, data=data)
    one, split = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "split"))
    assert one["per_class"].keys() == split["per_class"].keys()
    counts = ([row["instances"] for row in scores["per_class"].values()] for scores in (one, split))
    assert next(counts) == next(counts)
    assert not (tmp_path / "split/shards").exists()
    with pytest.raises(ConfigError, match="metrics.json: is there already; remove it"):
        run(ckpt, tmp_path / "split/metrics.json", shard="0/1", data=data)


def test_an_image_that_cannot_be_read_ends_it(ckpt: Path, tmp_path: Path) -> None:
    images = ckpt.parent / "set" / "val"
    run(ckpt, tmp_path / "before" / "metrics.json", shard="0/1")  # makes the set
    image = sorted(images.iterdir())[1]
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(DataError, match=f"{image.name}.*then remove .*shards and evaluate again"):
            run(ckpt, tmp_path / "out" / "metrics.json", shard="0/1")
    finally:
        image.write_bytes(content)
    assert not (tmp_path / "out/metrics.json").exists()
