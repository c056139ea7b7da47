"""AdelaiDet's FCOS, BlendMask and CondInst: state dicts into a segmenter, and back.

Nothing is skipped in silence: a tensor that has no place, or a place that has no tensor, is an error unless it is on
the short lists below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from b2inst.interop.boundary_rows import with_boundary_rows
from b2inst.interop.files import with_current_names
from b2inst.interop.names import HEAD, adelaidet_names, has_masks
from b2inst.models.segmenter import Segmenter

# Not in every file: counters of steps, and the semantic head, which only training needs. An FCOS has no masks either.
MAY_BE_MISSING = re.compile(r".*\.num_batches_tracked|basis_module\.seg_head\..*")
MASK_PARTS = ("basis_module.", "top_layer.", "mask_branch.", "controller.")
# In files, of no use here: counters, constants of the input and of CondInst, its semantic head, which only training
# needs and which is another than ours, ImageNet's classifier, and the biases that some ImageNet files give to
# convolutions in front of a norm.
MAY_BE_LEFT_OVER = re.compile(
    r".*\.num_batches_tracked|pixel_mean|pixel_std|mask_head\._iter|mask_head\.sizes_of_interest"
    r"|mask_branch\.(seg_head|logits)\..*"
    r"|(.*\.)?fc1000\..*|backbone\.bottom_up\.stem\.fc\..*|backbone\.bottom_up\.(.*\.)?(conv\d|shortcut)\.bias"
)
PANOPTIC = ("panoptic_module.", "sem_seg_head.")
CLASSIFIERS = ("detector.cls_logits.", "semantic.layers.2.")


@dataclass(frozen=True)
class Report:
    """What became of the tensors of a file.

    Attributes:
        loaded: our names that were filled from it.
        fresh: our names that keep what they were initialized with, whole or in rows, and why.
        left_over: names in the file that have no use here.
    """

    loaded: list[str]
    fresh: dict[str, str]
    left_over: list[str]

    def __str__(self) -> str:
        reasons: dict[str, int] = {}
        for reason in self.fresh.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines = [f"{len(self.loaded)} tensors loaded, {len(self.left_over)} left over {self.left_over}"]
        lines += [f"{count} start afresh: {reason}" for reason, count in reasons.items()]
        return "\n".join(lines)


def load_adelaidet(
    model: Segmenter,
    state: Mapping[str, Tensor],
    *,
    source: str = "state dict",
    reset_classifier: bool = False,
    detector_only: bool = False,
    attention_bias: float = -4.0,
    boundary_bias: float | None = None,
) -> Report:
    """Copy AdelaiDet's weights into a segmenter.

    With a boundary basis, the K mask bases and their attention are taken over. The boundary basis starts where its
    variant says, and its attention so low that the masks begin as BlendMask's own.

    Args:
        model: built for the sizes of the file, see `b2inst.interop.variant`.
        state: names and tensors; older names are understood.
        source: where it comes from, for messages.
        reset_classifier: let the class outputs start afresh where the file has another number of classes.
        detector_only: the file is an FCOS; basis head and attention start afresh.
        attention_bias: start of the attention logits of a boundary basis that the file does not have; the dynamic
            convolutions of CondInst start without it.
        boundary_bias: start of that basis, a logit; None for the `basis_bias` of the boundary variant.

    Returns:
        What was loaded, what starts afresh, what was left over.

    Raises:
        ValueError: for a panoptic model, another number of classes, and any key or shape that has no explanation; the
            message lists all of them. The model is unchanged then.
    """
    state = _joined_scales(with_current_names(state))
    if panoptic := [k for k in state if k.startswith(PANOPTIC)]:
        raise ValueError(
            f"{source}: a panoptic model ({', '.join(panoptic[:3])}, ...), and b2inst segments instances; take the "
            "instance model (in the listing, panoptic rows have the same file names as instance rows)"
        )
    if boundary_bias is None:
        boundary_bias = model.boundary.basis_bias
    params_bias = attention_bias if model.assembly.has_attention else 0.0
    names, own = adelaidet_names(model), model.state_dict()
    boundary_rows = partial(with_boundary_rows, model, basis_bias=boundary_bias, params_bias=params_bias)
    match = _match(names, own, state, boundary_rows)
    left_over = [k for k in state if k not in names.values()]
    allowed = [k for k in left_over if _may_be_left_over(model, k)]
    problems = [
        *_lines("in the file, but not in this model", [k for k in left_over if k not in allowed]),
        *_lines("in this model, but not in the file",
                [k for k in match.missing if not _may_be_missing(k, detector_only)]),
        *_lines("of another shape", match.shapes),
        *_lines("rows for another number of classes (reset_classifier=True starts them afresh)",
                [] if reset_classifier else match.classes),
    ]  # fmt: skip
    if problems:
        raise ValueError("\n  ".join([f"{source}: does not fit this model", *problems]))
    model.load_state_dict({**own, **match.loaded})
    return Report(list(match.loaded), match.fresh, allowed)


@dataclass(frozen=True)
class _Match:
    """Tensors by our names, reasons by our names, and theirs that are missing, of another shape, of other classes."""

    loaded: dict[str, Tensor]
    fresh: dict[str, str]
    missing: list[str]
    shapes: list[str]
    classes: list[str]


def _match(
    names: Mapping[str, str],
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    boundary_rows: Callable[[str, Tensor, Tensor], Tensor | None],
) -> _Match:
    """What a file has for each of our tensors.

    Args:
        names: theirs by ours.
        own: the tensors of the model.
        state: those of the file.
        boundary_rows: called with our name, the value of the file and ours; see `with_boundary_rows`.
    """
    match = _Match({}, {k: "has no counterpart in AdelaiDet" for k in own if k not in names}, [], [], [])
    for key, theirs in names.items():
        value, wanted = state.get(theirs), own[key]
        if value is None:
            match.fresh[key] = "not in the file"
            match.missing.append(theirs)
        elif value.shape == wanted.shape:
            match.loaded[key] = value
        elif (extended := boundary_rows(key, value, wanted)) is not None:
            match.loaded[key] = extended
            match.fresh[key] = "rows of the boundary basis, which the file does not have"
        elif key.startswith(CLASSIFIERS) and value.shape[1:] == wanted.shape[1:]:
            match.fresh[key] = "another number of classes (reset_classifier)"
            match.classes.append(f"{theirs} {value.shape[0]} for {wanted.shape[0]}")
        else:
            match.shapes.append(f"{theirs} {tuple(value.shape)} for {tuple(wanted.shape)}")
    return match


def export_adelaidet(model: Segmenter, *, detector_only: bool = False) -> dict[str, Tensor]:
    """The segmenter as a state dict of AdelaiDet's BlendMask or CondInst, or FCOS.

    A boundary basis that is used is one more basis there (`MODEL.BASIS_MODULE.NUM_BASES` is K + 1); one that is only
    supervised is dropped, and so are scoring heads: their scores do not change masks or boxes.

    Args:
        model: any segmenter on a ResNet.
        detector_only: leave out basis head, semantic head and attention: an FCOS.

    Returns:
        Copies of the tensors on the CPU by AdelaiDet's names.

    Raises:
        ValueError: if AdelaiDet has no such model.
    """
    boundary = model.boundary
    if not (detector_only or has_masks(model)):
        raise ValueError(
            f"model.assembly: AdelaiDet has no {type(model.assembly).__name__}; models with blend or dynamic can be "
            "exported"
        )
    if boundary.use_prediction and boundary.input not in ("logit", "detached"):
        raise ValueError(
            f"model.boundary.input={boundary.input}: AdelaiDet combines raw bases only, the masks would differ; "
            "models with input=logit or detached can be exported"
        )
    if boundary.use_prediction and boundary.classes:
        raise ValueError(
            "model.boundary.classes=true: AdelaiDet combines every basis, and not the maximum over the classes; models "
            "with classes=false or use_prediction=false can be exported"
        )
    rows = model.num_bases + boundary.use_prediction
    exported: dict[str, Tensor] = {}
    own = model.state_dict()
    for key, theirs in adelaidet_names(model).items():
        if detector_only and theirs.startswith(MASK_PARTS):
            continue
        value = own[key].detach().cpu().clone()
        if theirs == f"{HEAD}.scales":
            exported.update({f"{theirs}.{level}.scale": v.reshape(1).clone() for level, v in enumerate(value)})
        else:
            exported[theirs] = value[:rows].clone() if key.startswith("basis.bases.") else value
    return exported


def _joined_scales(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor (L,) of the factors per level."""
    joined = dict(state)
    scales = []
    while (value := joined.pop(f"{HEAD}.scales.{len(scales)}.scale", None)) is not None:
        scales.append(value.reshape(1))
    if scales:
        joined[f"{HEAD}.scales"] = torch.cat(scales)
    return joined


def _may_be_missing(key: str, detector_only: bool) -> bool:
    return MAY_BE_MISSING.fullmatch(key) is not None or (detector_only and key.startswith(MASK_PARTS))


def _may_be_left_over(model: Segmenter, key: str) -> bool:
    unused = model.semantic is None and key.startswith("basis_module.seg_head.")
    return unused or MAY_BE_LEFT_OVER.fullmatch(key) is not None


def _lines(what: str, keys: list[str]) -> list[str]:
    return [f"{len(keys)} {what}: {', '.join(keys)}"] if keys else []
