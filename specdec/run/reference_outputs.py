"""Reference outputs, which a point's rows are compared with: computed once and stored (specdec.equivalence.store).

If the tokens are those of plain decoding they come from the unmodified model: `transformers`' own ``generate``, one row
at a time, with its own cache, masks and positions. No code of this project takes part in a forward. When sampling, its
own logits processors compute the distribution; only the row's random number that picks from it comes from here. If the
tokens also depend on the draft (``verifier=rejection`` and ``block``), they are the method's own at batch 1. With
``numerics=invariant`` they are those of the target alone at batch 1 under the same numerics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specdec.config.checks import is_serving
from specdec.config.plugins import plugin_config
from specdec.config.processes import num_processes
from specdec.config.reference import follows_plain, method_settings, reference_key, reference_run
from specdec.config.schema import RunConfig
from specdec.core.clock import Clock
from specdec.core.lock import locked
from specdec.core.prompts import Prompt
from specdec.core.random_numbers import DRAW, uniforms
from specdec.core.round import Round
from specdec.core.sampling import draw
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence
from specdec.equivalence.store import ReferenceStore
from specdec.errors import PairError
from specdec.models.pair import Pair
from specdec.run.decode import Watch, conversations, decode, make_rows, stop_ids
from specdec.run.distributed import Ranks
from specdec.run.progress import RoundProgress

REVISION = "generate"  # part of the store's name, so that outputs computed in another way are not reused
Keep = Callable[[Sequence, float], None]
"""Called for every finished row, with its seconds."""


def reference_settings(config: RunConfig, pair: Pair) -> dict[str, object]:
    """Everything that decides the reference outputs."""
    return {
        "made_by": REVISION,
        **_invariant_settings(config, pair),
        "pair": pair.fingerprint,
        "dtype": config.runner.dtype,
        "device": pair.target.device.type,
        "attention": config.pair.attention,
        "torch": torch.__version__,
        "max_new_tokens": config.max_new_tokens,
        "stop_ids": sorted(stop_ids(config, pair)),
        **method_settings(config),
        **({} if follows_plain(config) else {"draft": pair.draft_fingerprint}),
        **({"tensor_parallel": num_processes(config.runner)} if config.runner.tensor_parallel else {}),
    }


def made_by_generate(config: RunConfig) -> bool:
    """Whether the reference outputs come from the unmodified model's own ``generate``."""
    return follows_plain(config) and config.numerics == "default"


def reference_label(config: RunConfig) -> str:
    """Which outputs the rows are compared with, for people."""
    if made_by_generate(config):
        return "transformers' generate at batch 1"
    what = "the target alone" if follows_plain(config) else "the method"
    return f"{what} at batch 1" + (", numerics=invariant" if config.numerics == "invariant" else "")


def _invariant_settings(config: RunConfig, pair: Pair) -> dict[str, object]:
    """Under numerics=invariant, what decides the bits: they are those of one machine and one set of shapes."""
    if config.numerics == "default":
        return {}
    model = pair.target
    return {"numerics": "invariant", "bits": model.execute(config.execution, config.numerics).bits}


def references(config: RunConfig, pair: Pair, prompts: list[Prompt], ranks: Ranks) -> ReferenceStore:
    """The reference outputs, completed by all processes; other runs wait for them, and use them too."""
    folder, settings = Path(config.results_dir) / "reference", reference_settings(config, pair)
    store = ReferenceStore(folder, settings, writes=ranks.writes)
    with ExitStack() as stack:

        def lock_and_load() -> dict[str, list[int]]:
            stack.enter_context(locked(config.results_dir, f"reference-{store.key}"))
            store.reload()
            return store.outputs

        store.outputs = dict(ranks.from_main(lock_and_load))
        missing = [prompt for prompt in prompts if store.get(reference_key(config, prompt.index, prompt.ids)) is None]
        if is_serving(config):  # the prompts of later turns are not known yet
            missing = prompts
        mine = ranks.share(missing, config.max_new_tokens)
        way = "transformers' generate, once" if made_by_generate(config) else "batch 1"
        with RoundProgress(f"reference ({way})", len(mine), config.progress and ranks.is_main) as progress:
            complete_reference(config, pair, mine, store, progress.observe_row)
        for outputs in ranks.gather(store.outputs if missing else {}):
            store.outputs.update(outputs)
    return store


def complete_reference(
    config: RunConfig,
    pair: Pair,
    prompts: list[Prompt],
    store: ReferenceStore,
    observe: Callable[[int, float], None] | None = None,
) -> None:
    """Decode what the store lacks, one row at a time.

    All of them at full length, whatever a prompt's own ``max_new_tokens`` is; every turn of a conversation, with the
    reference's own answers as history. ``observe`` is called for every row with its tokens and seconds.
    """
    turns = conversations(config, pair, prompts)

    def keep(row: Sequence, seconds: float) -> None:
        store.add(reference_key(config, row.index, row.prompt_ids), row.output_ids)
        if observe is not None:
            observe(len(row.output_ids), seconds)

    def known(prompt: Prompt) -> list[int] | None:
        return store.get(reference_key(config, prompt.index, prompt.ids))

    todo = turns.openings()
    while todo:
        missing = [replace(prompt, max_new_tokens=None) for prompt in todo if known(prompt) is None]
        if missing:
            (_generated if made_by_generate(config) else _decoded)(config, pair, missing, keep)
        after = [turns.follow_up(prompt.index, prompt.ids, known(prompt) or []) for prompt in todo]
        todo = [prompt for prompt in after if prompt is not None]


def _generated(config: RunConfig, pair: Pair, prompts: list[Prompt], keep: Keep) -> None:
    """Rows as ``generate`` decodes them alone."""
    for row in make_rows(config, pair, prompts):
        start = time.perf_counter()
        generate_alone(pair.target.module, row)
        keep(row, time.perf_counter() - start)


def _decoded(config: RunConfig, pair: Pair, prompts: list[Prompt], keep: Keep) -> None:
    """Rows as the point's own method decodes them at batch 1."""
    decoded_s = 0.0

    def observe(outcome: Round, clock: Clock) -> None:
        nonlocal decoded_s
        for row in outcome.finished:
            before, decoded_s = decoded_s, sum(clock.seconds.values())
            keep(row, decoded_s - before)

    alone = reference_run(config)
    if pair.target.recurrent or (pair.draft is not None and pair.draft.recurrent):
        alone = replace(alone, alignment=plugin_config("alignment", "inplace"))  # no other restores their states
    decode(alone, pair, prompts, watch=Watch(observers=(observe,)))


@torch.inference_mode()
def generate_alone(module: Any, row: Sequence) -> None:
    """Fill a row's output by the model's own ``generate``: batch 1, no draft, its own cache, masks and positions.

    Args:
        module: a causal language model of `transformers`. row: fresh; its settings are passed on.

    Raises:
        PairError: its ``generate`` does not work.
    """
    ids = torch.tensor([row.prompt_ids], device=module.device)
    stops = sorted(row.stop_ids)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=row.max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,  # one row needs no padding, but without an id generate warns
        use_cache=True,
    )
    stops_at_text = _StopStrings(row)
    with _without_own_settings(module):
        try:
            output = module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                logits_processor=LogitsProcessorList(_processors(row)),
                stopping_criteria=StoppingCriteriaList([stops_at_text] if row.stop_text is not None else []),
            )
        except (TypeError, AttributeError, NotImplementedError) as error:
            raise PairError(
                f"transformers' own generate cannot run a {type(module).__name__}, so there is no reference "
                f"({type(error).__name__}: {error}); set reference=false to run without one"
            ) from error
    if not row.output_ids:
        row.emit(output[0, len(row.prompt_ids) :].tolist())


def _processors(row: Sequence) -> list[LogitsProcessor]:
    """What ``generate`` itself would apply for these settings, in its order; then the draw."""
    params = row.sampling
    if params is None:
        return []
    made: list[LogitsProcessor] = []
    if params.penalizes:
        made.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.greedy:
        return made
    if params.temperature != 1:
        made.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k is not None:
        made.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        made.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        made.append(MinPLogitsWarper(params.min_p))
    return [*made, _Draw(row.index, params)]


class _Draw(LogitsProcessor):
    """Keeps only the token that the row's random number at this position picks."""

    def __init__(self, index: int, params: SamplingParams) -> None:
        self._key = (params.seed, index)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(1, n) ids and (1, V) scores to scores that are -inf, but 0 at the picked token."""
        uniform_B1 = uniforms([self._key], [[input_ids.shape[1]]], DRAW, [0]).to(scores.device)
        token_B = draw(scores.double().softmax(-1), uniform_B1[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, token_B[:, None], 0.0)


class _StopStrings(StoppingCriteria):
    """Ends a row at its stop strings, by the same rule as the rows of a run."""

    def __init__(self, row: Sequence) -> None:
        self._row = row

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """(1,) bool: whether the row has ended."""
        if not self._row.finished:
            self._row.emit(input_ids[0, self._row.length :].tolist())
        return torch.tensor([self._row.finished], device=input_ids.device)


@contextmanager
def _without_own_settings(module: Any) -> Iterator[None]:
    """Remove a model's own generation settings, which would apply wherever the call sets nothing."""
    own = module.generation_config
    module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        module.generation_config = own
