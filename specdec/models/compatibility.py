"""Whether a model can be run on an aligned batch: tried on the model itself, before anything else.

An architecture that ignores positions or masks, keeps another kind of state, or takes other arguments would give wrong
tokens or a third-party traceback in the middle of a run. A trial does not go out of date, as a list of names would.
There are two: a small copy of the architecture runs past every limit in its config (specdec.models.probe), and the
loaded module runs a few tokens, because it may have been changed after it was made.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.errors import PairError, type_and_message
from specdec.models.architecture import check_supported, measured
from specdec.models.causal_lm import CausalLM
from specdec.models.execution.fusable import foreign_hooks
from specdec.models.masks import forms
from specdec.models.probe import (
    DISAGREES,
    MARGIN,
    ProbeResult,
    forward_alone,
    module_difference,
    probe,
    steps_otherwise,
)
from specdec.models.small_copy import field
from specdec.models.states import state_cache

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest difference between aligned and unaligned logits of the loaded module, relative to the largest logit."""
NUM_TOKENS, NUM_PADS = 6, 3
QUANTISED = ("torch.ao.nn.quantized", "torch.nn.quantized")  # modules that define quantised layers


def supported(module: Any, name: str) -> CausalLM:
    """The model as a CausalLM, with its mask form and limits.

    Raises:
        PairError: it cannot be run exactly; the message names the model and the reason.
    """
    check_supported(module.config, name)
    described = f"{name} ({module.config.get_text_config().model_type})"
    if (reason := _cannot_run(module)) is not None:
        raise PairError(f"{described} {reason}")
    alone_V = _alone(module, described)
    result = _probed(module, described)
    assert result.form is not None
    try:
        model = CausalLM(module, forms(module)[result.form])
        _limit(model, result, described)
        aligned_BV = alone_V if model.recurrent else _aligned(model)
    except PairError:
        raise
    except Exception as error:  # architectures raise all kinds of errors for arguments they do not support
        raise PairError(_cannot_be_called(described, type_and_message(error))) from error
    if model.recurrent and (reason := module_difference(module, model.architecture.mask_form, TOLERANCE[model.dtype])):
        reason = steps_otherwise(module, TOLERANCE[model.dtype]) or reason
        raise PairError(_does_not_follow(described, reason))
    if _changed(module) and (reason := module_difference(module, model.architecture.mask_form, TOLERANCE[model.dtype])):
        raise PairError(_does_not_follow(described, f"its modules were changed after loading, and {reason}"))
    difference = float((aligned_BV - alone_V).abs().max() / alone_V.abs().max().clamp(min=1e-6))
    if not difference <= TOLERANCE[model.dtype]:
        reason = f"after padding its logits differ by {difference:.1%} from its own"
        raise PairError(_does_not_follow(described, reason))
    return model


def _probed(module: Any, described: str) -> ProbeResult:
    try:
        result = probe(module)
    except Exception as error:
        raise PairError(
            f"{described} cannot be tried in a small copy, so long rows cannot be checked: {type_and_message(error)}"
        ) from error
    if result.form is None:
        called = "Error" in result.reason
        raise PairError((_cannot_be_called if called else _does_not_follow)(described, result.reason))
    return result


def _limit(model: CausalLM, result: ProbeResult, described: str) -> None:
    """Limit rows to the length up to which the model is exact."""
    if result.limit is None:
        return
    value = int(field(model.module.config.get_text_config(), result.limit))
    model.max_columns = value - 1
    if model.context_length <= value - 1 - MARGIN:
        return
    model.context_length = value - 1 - MARGIN
    if model.context_length < 1:
        raise PairError(f"{_does_not_follow(described, result.reason)} (from {result.limit}={value} on)")
    model.notes.append(
        f"{described}: rows end at {model.context_length} tokens; beyond {result.limit}={value} {result.reason}"
    )


def _cannot_be_called(described: str, reason: str) -> str:
    return (
        f"{described} cannot be run on an aligned batch, which needs explicit positions, a 4-D mask and a cache that "
        f"is written in place: {reason}"
    )


def _does_not_follow(described: str, reason: str) -> str:
    if reason == DISAGREES:
        return f"{described} cannot be run exactly: {reason}"
    return (
        f"{described} does not follow explicit positions and masks: {reason}; speculative decoding in batches would be "
        "wrong"
    )


def _cannot_run(module: Any) -> str | None:
    """Why this module cannot be run here, as far as that shows without running it."""
    config = module.config.get_text_config()
    if field(module.config, "is_encoder_decoder") and not field(module.config, "is_decoder"):
        return "is an encoder-decoder: speculative decoding here needs a decoder-only model"
    if any(type(part).__module__.startswith(QUANTISED) for part in module.modules()):
        return (
            "is quantised by PyTorch: its activations are scaled over the whole batch, so a row would depend on its "
            "neighbours; load the unquantised model, or one with only its weights quantised"
        )
    if any(weight.device.type == "meta" for weight in module.parameters()):
        return "has parts that are offloaded (device_map): load it on one device"
    if state_cache(module) is not None:
        return _cannot_restore(module)
    if not _takes_positions(module):
        alibi = "; it computes attention biases (ALiBi) from the columns of a 2-D mask" if _has_alibi(config) else ""
        return f"takes no position ids, which rows that advance unevenly need{alibi}"
    if _has_alibi(config):
        return (
            "computes attention biases (ALiBi) from the columns of a 2-D mask, which are not positions when rows "
            "advance unevenly"
        )
    return None


def _cannot_restore(module: Any) -> str | None:
    """Why a model's recurrent states cannot be restored; None if they can."""
    try:
        _, has_kv, _ = measured(module)
    except PairError as error:
        return f"cannot restore its recurrent state at the accepted tokens: {error}"
    except Exception as error:
        return f"cannot be run with its own cache: {type_and_message(error)}"
    return None if not any(has_kv) or _takes_positions(module) else "takes no position ids"


def _changed(module: Any) -> bool:
    """Whether parts have a replaced forward or hooks, which a copy of the class would not have."""
    return any("forward" in vars(part) or foreign_hooks(part) for part in module.modules())


def _has_alibi(config: Any) -> bool:
    attention = field(config, "attn_config")
    return bool(field(config, "alibi") or field(attention, "alibi") or config.model_type == "bloom")


def _takes_positions(module: Any) -> bool:
    """Whether the model or, as wrappers pass arguments on without naming them, one of its parts takes positions."""
    models = (part for part in module.modules() if isinstance(part, PreTrainedModel))
    named = (inspect.signature(part.forward).parameters for part in models)
    return any({"input_ids", "position_ids"} <= names.keys() for names in named)


def _tokens(vocab_size: int) -> list[int]:
    return [(7 * i + 1) % vocab_size for i in range(NUM_TOKENS)]


@torch.inference_mode()
def _alone(module: Any, described: str) -> Tensor:
    """The last token's logits (V), computed by `transformers` alone."""
    ids = torch.tensor([_tokens(module.config.get_text_config().vocab_size)], device=module.device)
    try:
        logits = forward_alone(module, ids)
    except Exception as error:
        raise PairError(
            f"{described} cannot be run in {str(module.dtype).removeprefix('torch.')} on {module.device}, even alone: "
            f"{type_and_message(error)}"
        ) from error
    return logits[0, -1]


@torch.inference_mode()
def _aligned(model: CausalLM) -> Tensor:
    """The same (B, V) for two rows of a batch, one after padding; the last two tokens are fed over the cache."""
    starts_B1 = torch.tensor([[NUM_PADS], [0]], device=model.device)
    columns_S = torch.arange(NUM_PADS + NUM_TOKENS, device=model.device)
    tokens_S = torch.tensor(_tokens(model.vocab_size), device=model.device)
    tokens_BS = tokens_S[(columns_S - starts_B1).clamp(min=0, max=NUM_TOKENS - 1)]
    positions_BS = (columns_S - starts_B1).clamp(min=0)
    mask_BSS = (columns_S <= columns_S[:, None]) & (columns_S >= starts_B1)[:, None]
    mask_BSS |= torch.eye(len(columns_S), dtype=torch.bool, device=model.device)
    kv, logits = model.empty_storage(2, len(columns_S)), []
    for start, stop in ((0, len(columns_S) - 2), (len(columns_S) - 2, len(columns_S))):
        fed = slice(start, stop)
        mask_BTS = mask_BSS[:, fed, :stop]
        logits.append(model.forward(tokens_BS[:, fed], positions_BS[:, fed], mask_BTS, kv.append(stop - start)))
    logits_BSV = torch.cat(logits, dim=1)
    return torch.stack([logits_BSV[0, -1], logits_BSV[1, NUM_TOKENS - 1]])
