"""Whether an architecture follows explicit positions and masks: a trial of a small copy, past every limit.

The copy (models.small_copy) runs in float32 on rows longer than all of its windows, chunks, scales and original
lengths: ragged, several tokens at once after a ragged commit, through both ways of writing to the cache. The result
must equal its own forward of each row alone, without a cache. Its own ``generate`` must agree with that forward too,
or there would be no exact output. The logits also decide in which form it takes masks.
Shape letters: B rows, T tokens fed, S columns, n tokens of a row, V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from specdec.errors import type_and_message
from specdec.models.architecture import context_length
from specdec.models.cache_argument import cache_argument
from specdec.models.causal_lm import CausalLM
from specdec.models.masks import MaskForm, forms
from specdec.models.small_copy import LIMITS, field, miniature, quiet, small_config, unwrapped
from specdec.models.states import StateFeed, StateStorage, state_cache

TOLERANCE = 5e-4
"""Largest difference of a logit, relative to the largest: correct float32 computations differ by up to 1e-5."""
NUM_TOKENS, NUM_FED = 44, 5
SEEDS = (0, 1, 2)  # the first may hit a near-tie in expert routing; then both others must pass
DISAGREES = "its own generate() and its own forward without a cache disagree, so it has no defined reference output"
MARGIN = 64  # columns kept free below a limit, for drafted tokens and holes between rows


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of a trial."""

    form: int | None  # index into ``masks.forms``; None: the model follows positions and masks in no form
    reason: str = ""  # why the model is refused or limited
    limit: str | None = None  # config field whose value bounds the positions at which the model is exact


_RESULTS: dict[str, ProbeResult] = {}  # by architecture: a trial takes seconds, and is the same for all its modules


def probe(module: Any) -> ProbeResult:
    """Try the architecture of a module, once for all modules with the same classes and config.

    Raises:
        Exception: the small copy cannot be built or run alone.
    """
    inner = unwrapped(module)
    settings = small_config(inner.config).to_dict()
    ignored = ("_name_or_path", "transformers_version", "architectures", "dtype")
    described = {name: value for name, value in settings.items() if name not in ignored}
    kind = f"{type(inner).__module__}.{type(inner).__qualname__}"
    attention = inner.config._attn_implementation
    key = json.dumps([kind, attention, described], sort_keys=True, default=str)
    if key not in _RESULTS:
        with quiet():
            _RESULTS[key] = _try_forms(module)
    return _RESULTS[key]


def _try_forms(module: Any) -> ProbeResult:
    small = _build(module, ())
    found = _first_form(small)
    if found.form is not None:
        return found
    for name in _limit_fields(module):
        lifted = _first_form(_build(module, (name,)))
        if lifted.form is not None:
            return ProbeResult(lifted.form, found.reason, name)
    return found


def _build(module: Any, lifted: tuple[str, ...]) -> Any:
    """The copy with narrow layers, or with the module's own widths if those cannot be changed."""
    try:
        small = miniature(module, lifted=lifted)
        _alone(small, _rows(small, SEEDS[0])[:1])
        return small
    except Exception as error:
        try:
            return miniature(module, keep_width=True, lifted=lifted)
        except Exception:
            raise error from None  # the error of the narrow copy is the more telling one


def _limit_fields(module: Any) -> list[str]:
    """Fields of the config with a limit that the copy lowers."""
    config = module.config.get_text_config()
    return [name for name in LIMITS if isinstance(field(config, name), int) and field(config, name) > 0]


@torch.inference_mode()
def _first_form(small: Any) -> ProbeResult:
    """The first mask form under which aligned forwards match each row alone, else why the likeliest fails."""
    reasons: list[str] = []
    if (disagreement := _generates_otherwise(small)) is not None:
        return ProbeResult(None, disagreement)
    if (disagreement := steps_otherwise(small)) is not None:
        return ProbeResult(None, disagreement)
    likely, rows = forms(small), _rows(small, SEEDS[0])
    expected = _alone(small, rows)
    for number, form in enumerate(likely):
        reasons.append(_differs(small, form, rows, expected))
        if not reasons[-1]:
            return ProbeResult(number)
    for seed in SEEDS[1:]:
        others = _rows(small, seed)
        if _differs(small, likely[0], others, _alone(small, others)):
            return ProbeResult(None, reasons[0])
    return ProbeResult(0)


@torch.inference_mode()
def module_difference(module: Any, form: MaskForm, tolerance: float) -> str:
    """How aligned forwards of a loaded module differ from its own of each row alone; empty if they do not."""
    rows = _rows(module, SEEDS[0])
    return _differs(module, form, rows, _alone(module, rows), tolerance)


def _differs(
    small: Any, form: MaskForm, rows: list[list[int]], expected: list[Tensor], tolerance: float = TOLERANCE
) -> str:
    """How aligned forwards differ from the logits (n, V) of each row alone; empty if they do not."""
    scale = max(float(logits.abs().max()) for logits in expected)
    model = CausalLM(small, form)
    other = ("chunked", _chunked) if model.recurrent else ("appended", _appended)
    for way, forward in (("scattered", _scattered), other):
        try:
            found = forward(model, rows)
        except Exception as error:  # architectures raise all kinds of errors for arguments they do not support
            return type_and_message(error)
        share = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / max(scale, 1e-6)
        if not share <= tolerance:
            return f"with {way} columns its logits differ by up to {share:.1%} from those of the row alone"
    return ""


def _rows(small: Any, seed: int) -> list[list[int]]:
    """Three ragged rows, the longest as long as the copy's context allows."""
    config = small.config.get_text_config()
    longest = min(NUM_TOKENS, context_length(config) - NUM_FED)
    generator = torch.Generator().manual_seed(seed)
    lengths = (longest, longest - 7, longest // 2)
    return [torch.randint(0, config.vocab_size, (n,), generator=generator).tolist() for n in lengths]


def _alone(small: Any, rows: list[list[int]]) -> list[Tensor]:
    """Logits (n, V) of each row alone, without a cache."""
    return [forward_alone(small, torch.tensor([row], device=small.device))[0] for row in rows]


def forward_alone(module: Any, ids_1S: Tensor) -> Tensor:
    """Logits (1, S, V) of a row without a cache, at positions 0, 1, 2, ..., as ``generate`` gives a row alone.

    Without explicit positions, some models (of RoBERTa's kind) start at another one.
    """
    positions_1S = torch.arange(ids_1S.shape[1], device=ids_1S.device)[None]
    logits_1SV: Tensor = module(ids_1S, position_ids=positions_1S, use_cache=False).logits
    return logits_1SV


def _steps(rows: list[list[int]]) -> list[list[int]]:
    """Tokens of each row that each forward keeps: ragged prompts, then 1 to NUM_FED each."""
    generator = torch.Generator().manual_seed(0)
    left = [len(row) for row in rows]
    steps = [[max(n // 2 - 3 * b, 1) for b, n in enumerate(left)]]
    left = [n - fed for n, fed in zip(left, steps[0], strict=True)]
    while any(left):
        drawn = torch.randint(1, NUM_FED + 1, (len(rows),), generator=generator).tolist()
        steps.append([min(n, fed) for n, fed in zip(left, drawn, strict=True)])
        left = [n - fed for n, fed in zip(left, steps[-1], strict=True)]
    return steps


def _fed(rows: list[list[int]], starts: list[int], counts: list[int], num_new: int) -> Tensor:
    """(B, T) tokens: each row's next ones, followed by tokens that will be rejected."""
    fed = [row[start : start + n] for row, start, n in zip(rows, starts, counts, strict=True)]
    return torch.tensor([part + [row[0]] * (num_new - len(part)) for part, row in zip(fed, rows, strict=True)])


def _scattered(model: CausalLM, rows: list[list[int]]) -> list[Tensor]:
    """Column j holds token j of its row; rejected tokens are overwritten by the next ones."""
    kv, slots = model.empty_storage(4, 0), [2, 0, 3]
    states, kept = StateStorage(model.architecture.states, model.device), [0] * len(rows)
    starts = [0] * len(rows)
    logits: list[list[Tensor]] = [[] for _ in rows]
    for step, counts in enumerate(_steps(rows)):
        num_new = max(counts) if step == 0 else NUM_FED
        tokens_BT = _fed(rows, starts, counts, num_new).to(model.device)
        feed = _checkpointed(states, slots, kept, num_new) if model.recurrent else None
        logits_BTV = model.forward_chains(tokens_BT, kv.scatter(slots, starts, num_new), states=feed)
        for b, count in enumerate(counts):
            logits[b].append(logits_BTV[b, :count])
        kept = counts
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
    return [torch.cat(parts) for parts in logits]


def _chunked(model: CausalLM, rows: list[list[int]]) -> list[Tensor]:
    """Each row alone, in the chunked form of the mixers: in parts, if that continues a state, else at once."""
    logits = []
    for row in rows:
        kv, states = model.empty_storage(1, 0), StateStorage(model.architecture.states, model.device)
        states.reserve(1, 1)
        ends = range(NUM_FED + 1, len(row), NUM_FED + 1) if model.architecture.states.continues else ()
        parts, zeros = [], torch.zeros(1, 1, dtype=torch.long, device=model.device)
        for start, stop in pairwise([0, *ends, len(row)]):
            feed = StateFeed(states, zeros[0], zeros, zeros, stop - start)
            tokens_1T = torch.tensor([row[start:stop]], device=model.device)
            parts.append(model.forward_chains(tokens_1T, kv.scatter([0], [start], stop - start), states=feed)[0])
        logits.append(torch.cat(parts))
    return logits


def _checkpointed(states: StateStorage, slots: list[int], kept: list[int], num_new: int) -> StateFeed:
    """Goes on from the checkpoint of the last token kept of those fed before, and leaves one after each token."""
    states.reserve(max(slots) + 1, 2 * (num_new + 1))
    for part in states.parts:
        part[slots, 0] = part[slots, kept]
    device = states.parts[0].device
    places_NB = torch.arange(num_new + 1, device=device)[:, None].expand(-1, len(slots))
    return StateFeed(states, torch.tensor(slots, device=device), places_NB[:-1], places_NB[1:], 1)


def _appended(model: CausalLM, rows: list[list[int]]) -> list[Tensor]:
    """All rows write to the same columns, with padding on the left and holes for rejected tokens."""
    kv, starts = model.empty_storage(len(rows), 0), [0] * len(rows)
    logits: list[list[Tensor]] = [[] for _ in rows]
    real_BS = torch.zeros(len(rows), 0, dtype=torch.bool)
    for step, counts in enumerate(_steps(rows)):
        num_new = max(counts) if step == 0 else NUM_FED
        pads = [num_new - count if step == 0 else 0 for count in counts]
        tokens_BT = _fed(rows, starts, counts, num_new)
        places_BT = torch.arange(num_new) - torch.tensor(pads)[:, None]
        tokens_BT = tokens_BT.gather(1, places_BT % num_new)
        own_BTT = (places_BT[:, None] <= places_BT[..., None]) & (places_BT[:, None] >= 0)
        own_BTT |= torch.eye(num_new, dtype=torch.bool)  # a padding column sees itself, so that its output is finite
        mask_BTS = torch.cat([real_BS[:, None].expand(-1, num_new, -1), own_BTT], dim=-1)
        positions_BT = (places_BT + torch.tensor(starts)[:, None]).clamp(min=0, max=model.context_length - 1)
        tokens_BT, positions_BT, mask_BTS = (p.to(model.device) for p in (tokens_BT, positions_BT, mask_BTS))
        logits_BTV = model.forward(tokens_BT, positions_BT, mask_BTS, kv.append(num_new))
        for b, (pad, count) in enumerate(zip(pads, counts, strict=True)):
            logits[b].append(logits_BTV[b, pad : pad + count])
        kept_BT = (places_BT >= 0) & (places_BT < torch.tensor(counts)[:, None])
        real_BS = torch.cat([real_BS, kept_BT], dim=1)
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
    return [torch.cat(parts) for parts in logits]


def _generates_otherwise(small: Any) -> str | None:
    """The reason if the copy's own ``generate`` emits a token that its own forward would not, else None.

    Tried from a short prompt, so that limits are passed while it generates, and from a long one.
    """
    row = _rows(small, SEEDS[0])[0]
    small.generation_config = GenerationConfig()
    for num_prompt, num_new in ((NUM_FED, len(row) - NUM_FED), (len(row) - NUM_FED, NUM_FED)):
        prompt = torch.tensor([row[:num_prompt]])
        settings = GenerationConfig(do_sample=False, max_new_tokens=num_new, pad_token_id=0)
        try:
            output = small.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
        except Exception:  # a checkpoint's own code may not support generate: the reference will fail
            return None
        logits_TV = forward_alone(small, output)[0, num_prompt - 1 : -1].float()
        emitted_T1 = output[0, num_prompt:, None]
        short_T = logits_TV.amax(-1) - logits_TV.gather(-1, emitted_T1)[:, 0]
        if not float(short_T.max() / logits_TV.abs().max()) <= TOLERANCE:
            return DISAGREES
    return None


@torch.inference_mode()
def steps_otherwise(small: Any, tolerance: float = TOLERANCE) -> str | None:
    """The reason if recurrent layers compute other values token by token than of a row at once, else None."""
    if state_cache(small) is None:
        return None
    rows = _rows(small, SEEDS[0])
    expected = _alone(small, rows)
    scale = max(float(logits.abs().max()) for logits in expected)
    for row, expected_SV in zip(rows, expected, strict=True):
        cache = cache_argument(small, state_cache(small))
        steps = [_one(small, token, position, cache) for position, token in enumerate(row)]
        if not float((torch.stack(steps) - expected_SV).abs().max()) <= tolerance * scale:
            return DISAGREES
    return None


def _one(small: Any, token: int, position: int, cache: dict[str, Any]) -> Tensor:
    """Logits (V) after one more token of a row, by the copy's own cache."""
    ids, positions = torch.tensor([[token], [position]], device=small.device)[:, None]
    logits_11V: Tensor = small(ids, position_ids=positions, **cache, use_cache=True).logits
    return logits_11V[0, 0]
