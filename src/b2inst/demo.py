"""Show a checkpoint in the browser: `python -m b2inst.demo ckpt=FILE [samples=FOLDER] [port=7860]`.

The page is for this machine alone. It needs Gradio: `pip install 'b2inst[demo]'`. Exit code 1: it was not started.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from b2inst import runtime
from b2inst.config import ConfigError, plain
from b2inst.demo_images import sample_files
from b2inst.demo_server import check_port, closed_environment, refuse_network, serve
from b2inst.paths import config_dir
from b2inst.predict_models import load_model


def demo(config: dict[str, Any]) -> None:
    """Serve the page of a checkpoint until it is interrupted.

    The whole process is cut off from the network, and its variables for Gradio are set.

    Args:
        config: plain values, as `conf/demo.yaml` composes them.

    Raises:
        ConfigError: something is missing or cannot work; nothing has been started then.
    """
    check(config)
    model = load_model("ckpt", config)
    with closed_environment() as scratch:
        refuse_network()
        from b2inst import demo_page  # brings Gradio, which reads the environment

        samples = sample_files(config["samples"], scratch, config["max_samples"])
        page = demo_page.Page(
            model, samples, scratch / "cache", round(config["max_megapixels"] * 1e6), config["max_side"]
        )
        blocks = demo_page.build(page, Path(config["ckpt"]).name)
        try:
            serve(blocks, demo_page.look(), config["port"], config["max_megabytes"])
        finally:
            page.stop()


def check(config: dict[str, Any]) -> None:
    """Look at all values that need no model, and at what the page needs.

    Raises:
        ConfigError: the first thing that cannot work, and the remedy.
    """
    if config["ckpt"] is None:
        raise ConfigError("ckpt: missing; give ckpt=FILE, for example ckpt=outputs/demo/checkpoints/best.ckpt")
    for name, least, most in (("port", 1, 65535), ("max_samples", 1, 100), ("max_side", 64, 8192)):
        value = config[name]
        if not _is(value, int) or not least <= value <= most:
            raise ConfigError(f"{name}={value}: give a whole number from {least} to {most}")
    for name in ("max_megabytes", "max_megapixels"):
        value = config[name]
        if not _is(value, int, float) or not 0 < value <= 1000:
            raise ConfigError(f"{name}={value}: give a number above 0, at most 1000")
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("the demo needs Gradio, which is not installed; pip install 'b2inst[demo]'")
    check_port(config["port"])


def _is(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="demo")
def main(cfg: DictConfig) -> None:
    """Command line entry."""
    with runtime.told_in_words():
        demo(plain(cfg))


if __name__ == "__main__":
    main()
