"""Train, then evaluate the best checkpoint: `python -m b2inst.train experiment=ablation_e`."""

from __future__ import annotations

import logging
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ProgressBar, WeightAveraging

from b2inst import distributed, runtime, viz_curves
from b2inst.callbacks.evaluation import CocoEvaluation
from b2inst.callbacks.last import LAST, LastCheckpoint
from b2inst.callbacks.loop_state import steps_of, validation_first
from b2inst.callbacks.resumed import Resumed
from b2inst.checkpoint_io import AtomicCheckpointIO, damage, read_checkpoint
from b2inst.config import ConfigError, build, plain
from b2inst.config_check import check
from b2inst.lit import LitSegmenter
from b2inst.metrics.results import save_results
from b2inst.metrics.scores import Scores
from b2inst.paths import config_dir
from b2inst.resume import prepare_log, resolve_checkpoint
from b2inst.resume_check import check_resume, training_data
from b2inst.stop import StopRequest
from b2inst.sweep import ERROR_FILE, METRICS_FILE, read_metrics, status
from b2inst.writing import lose, lost, may_fail, whole_file

log = logging.getLogger(__name__)

RESULTS = "metrics.json or results.json"
CHECKPOINTS = "checkpoints"


def train(config: dict[str, Any], multirun: bool = False) -> Scores:
    """Run one training from a resolved configuration.

    Writes into the folder `output`: config.yaml, checkpoints/, metrics.csv, metrics.json, results.json, pictures/.
    A signal that asks to stop ends the program, after a checkpoint where the training has begun; see `b2inst.stop`.

    Args:
        config: plain values, as `conf/train.yaml` composes them.
        multirun: whether this is one job of a sweep.

    Returns:
        The scores of the best checkpoint on the validation split.

    Raises:
        ConfigError: if the configuration cannot work; nothing has been written then.
    """
    check(config, multirun=multirun)
    output = Path(config["output"])
    trainer_config = config["trainer"]
    with StopRequest() as stop, runtime.job(
        config["seed"], trainer_config["deterministic"], trainer_config["benchmark"],
        config["training"]["matmul_precision"],
    ):  # fmt: skip
        distributed.join()
        data = build(config["data"], at="data")
        config["classes"], config["category_ids"] = list(data.class_names), list(data.category_ids)
        if config["model"]["num_classes"] is None:
            config["model"]["num_classes"] = data.num_classes
        elif config["model"]["num_classes"] != data.num_classes:  # names and category ids go by class
            raise ConfigError(
                f"model.num_classes: {config['model']['num_classes']}, but the annotations have {data.num_classes} "
                "categories; set it to null, which takes as many"
            )
        ckpt_path = resolve_checkpoint(config["ckpt_path"], output)
        module = LitSegmenter(config)
        if config["init_from"] is not None:
            init_from(module, config["init_from"])
        callbacks = _parts(config["callbacks"], "callbacks")
        if not trainer_config.get("enable_progress_bar", True):
            callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
        for callback in callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.stop = stop
        loggers = _parts(config["logger"], "logger")
        resumed = [Resumed()] * (ckpt_path is not None)
        trainer: pl.Trainer = build(
            trainer_config, at="trainer", callbacks=[*callbacks, *resumed], logger=loggers,
            plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        step, validation = None, False
        if ckpt_path is not None:
            checkpoint = read_checkpoint(ckpt_path, mmap=True)
            check_resume(ckpt_path, checkpoint, config, module, training_data(data, trainer.world_size))
            step, validation = steps_of(checkpoint), validation_first(checkpoint)
        if distributed.rank() == 0:
            begin(output, config, step, validation)
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return finish(trainer, module, data, output)


def _parts(section: dict[str, Any], path: str) -> list[Any]:
    return [build(part, at=f"{path}.{name}") for name, part in section.items() if part is not None]


def begin(output: Path, config: dict[str, Any], step: int | None, validation: bool = False) -> None:
    """Write what a run starts with.

    Args:
        output: folder of the run.
        config: resolved.
        step: the first that is logged, where the run goes on; None for a new one.
        validation: whether it goes on with the validation of the step before.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        if (output / METRICS_FILE).is_file():  # of a run that was shorter: this one is not done yet
            (output / METRICS_FILE).unlink()
        prepare_log(output / "metrics.csv", step, config["ckpt_path"] == "last", validation)
        with whole_file(output / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(config)))
    except OSError as error:
        raise ConfigError(
            f"output: {output} cannot be written to ({error.strerror or error}); make room or give another folder; its "
            "checkpoints are as they were"
        ) from error


def finish(trainer: pl.Trainer, module: LitSegmenter, data: pl.LightningDataModule, output: Path) -> Scores:
    """Evaluate the best checkpoint, the weights of the last step if there is none; write numbers, results and curves.

    Where a checkpoint could not be written, the scores are returned, and metrics.json, the mark of a run that is done,
    is not written.
    """
    evaluation = next(c for c in trainer.callbacks if isinstance(c, CocoEvaluation))
    # The checkpoints hold averaged weights; the callback would put the average of the last step in their place.
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, WeightAveraging)]
    path = trainer.strategy.broadcast(_to_score(output / "checkpoints", trainer.global_step))
    step = trainer.global_step
    if path is not None:  # else they could not be written
        checkpoint = read_checkpoint(path, mmap=True)
        step = checkpoint.get("global_step")
        module.load_state_dict(checkpoint["state_dict"])
    trainer.validate(module, datamodule=data, verbose=False)
    scores = evaluation.scores
    if trainer.is_global_zero:
        with may_fail("loss and AP curves"):
            viz_curves.curves(output / "metrics.csv", output / "pictures")
        if missing := trainer.strategy.checkpoint_io.lost:
            reasons = ", ".join(f"{name} ({reason})" for name, reason in missing.items())
            lose(CHECKPOINTS, f"{reasons}; the scores are of {path or 'the weights in memory'}, step {step}, and there "
                              f"is no {METRICS_FILE}, for the run is not done")  # fmt: skip
            return scores
        with may_fail(RESULTS, f"make room and run `python -m b2inst.evaluate ckpt={path}`"):
            save_results(output / "results.json", evaluation.records)
            scores.to_json(output / METRICS_FILE)  # the last: a sweep takes it as the mark of a job that is done
    return scores


def _to_score(folder: Path, step: int) -> Path | None:
    """The best checkpoint, or the newest if it is of this step; None where that is in memory alone."""
    for path in (folder / "best.ckpt", folder / LAST):
        if path.exists() and (reason := damage(path)) is not None:
            log.warning("%s is damaged (%s) and is not scored", path, reason)
        elif path.exists() and (path.name != LAST or read_checkpoint(path, mmap=True).get("global_step") == step):
            return path
    return None


def init_from(module: LitSegmenter, path: str) -> None:
    """Start from another checkpoint of this package: every tensor of the same name and shape is taken over."""
    try:
        state, own = _state_dict(Path(path)), module.state_dict()
    except Exception as error:  # whatever a damaged or foreign file leads to
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"init_from={path}: no checkpoint of this package, or damaged ({reason}); weights of other packages become "
            "one with `python -m b2inst.interop.convert`"
        ) from error
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise ConfigError(f"init_from={path}: none of its {len(state)} tensors fits this model")
    module.load_state_dict(fitting, strict=False)
    fresh = [k for k in own if k not in fitting]
    log.info("init_from %s: %d tensors taken over, %d start afresh: %s", path, len(fitting), len(fresh), fresh)


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def report(output: Path, scores: Scores) -> str:
    """The table that a run ends with, and where its files are."""
    files = [output / "metrics.json", output / "results.json", output / "checkpoints", output / "metrics.csv"]
    files += sorted((output / "pictures").glob("*.png"))
    return "\n".join([scores.table(), *(f"  {path}" for path in files if path.exists())])


def _run_job(config: dict[str, Any]) -> Scores | None:
    """One job of a sweep: an error is logged and kept in the job's folder, and does not end the sweep."""
    output = Path(config["output"])
    try:
        (output / ERROR_FILE).unlink(missing_ok=True)  # of an earlier try
        return train(config, multirun=True)
    except Exception:
        log.exception("job failed: %s", output)
        with may_fail(f"{output / ERROR_FILE}"):
            output.mkdir(parents=True, exist_ok=True)
            (output / ERROR_FILE).write_text(traceback.format_exc())
        return None


def _go_on(config: dict[str, Any]) -> dict[str, Any] | None:
    """What a job of a sweep that is continued has reached, if it is done; else let it start from its checkpoint."""
    output = Path(config["output"])
    if status(output) == "done":
        return read_metrics(output)
    if config["ckpt_path"] is None or (output / "checkpoints" / LAST).is_file():
        config["ckpt_path"] = "last"
    return None


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Command line entry; returns the objective, which a sweeper maximizes."""
    run = HydraConfig.get()
    multirun = run.mode == RunMode.MULTIRUN
    if multirun:
        if any(override.startswith("output=") for override in run.overrides.task):
            raise ConfigError("output: each job of a sweep has its own folder; give hydra.sweep.dir=DIR instead")
        cfg.output = run.runtime.output_dir
    elif distributed.rank() and not distributed.started_from_outside() > 1:
        cfg.output = run.runtime.output_dir  # the name holds the time, and the first process has started earlier
    with nullcontext() if multirun else runtime.told_in_words():
        config = plain(cfg)
    if multirun and config["sweep"]["resume"] and (metrics := _go_on(config)) is not None:
        log.info("done already: %s", config["output"])
        return metrics.get(config["objective"])
    if multirun:
        scores = _run_job(config)
    else:
        with runtime.told_in_words():
            distributed.check_output(run.overrides.task)
            scores = train(config)
    if scores is None or distributed.rank():
        return None
    print(report(Path(config["output"]), scores), flush=True)
    if CHECKPOINTS in lost() and not multirun:
        raise SystemExit(f"error: could not be written: {lost()[CHECKPOINTS]}; make room and run the same command with "
                         "ckpt_path=last, which goes on from the newest checkpoint that is there")  # fmt: skip
    if RESULTS in lost() and not multirun:
        raise SystemExit(f"error: {RESULTS} could not be written: {lost()[RESULTS]}; the checkpoints are there")
    return scores.metrics.get(config["objective"])


if __name__ == "__main__":
    main()
