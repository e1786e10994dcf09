"""Batched speculative generation for any causal model of `transformers`, without a config.

`generate` replaces ``model.generate``: every row gets the tokens that it would have got alone. `stream` yields them in
the rounds that emit them. `Engine` keeps its checks and caches between calls. Alignment is `inplace`, the scheduler
`continuous`, and the draft length follows from the draft's cost; none of them changes a greedy token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.base import Alignment
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.prefixes import check_sharing
from specdec.config.judging import why_not
from specdec.core.clock import Clock
from specdec.core.sequence import SequencePool
from specdec.drafters.base import Drafter
from specdec.drafters.context import DrafterContext
from specdec.engine.call import Plan, make_plan
from specdec.engine.inputs import Inputs
from specdec.engine.loop import RoundLoop
from specdec.engine.options import whole_number
from specdec.engine.output import Event, SpeculativeOutput, events_of, sequences, statistics, streamers_of
from specdec.engine.scores import ScoreRecorder
from specdec.engine.wrapping import (
    Model,
    check_device,
    check_unmoved,
    choose_drafter,
    choose_gamma,
    choose_tree,
    evaluating,
    wrapped,
)
from specdec.errors import ConfigError
from specdec.models.causal_lm import CausalLM
from specdec.models.vocabulary import check_fit
from specdec.registry import create, lookup

PREFILL_CHUNK = 2048
"""Tokens of a prompt per forward, at most: a mask of the whole would grow by the square of a long prompt."""


def generate(
    target: Model,
    draft: Model | str | None,
    inputs: Inputs | None = None,
    generation_config: Any = None,
    *,
    tokenizer: Any = None,
    draft_tokenizer: Any = None,
    gamma: int | None = None,
    verifier: str = "block",
    tree: str = "chain",
    tree_settings: Mapping[str, Any] | None = None,
    shared_prefix: int = 0,
    **call: Any,
) -> Tensor | SpeculativeOutput:
    """``target.generate(inputs, ...)`` by speculative decoding, for any batch.

    See `Engine` for the models and `Engine.generate` for everything else. Each call checks by short forwards that both
    models can be run in aligned batches; an `Engine` checks once.
    """
    engine = Engine(
        target,
        draft,
        tokenizer=tokenizer,
        draft_tokenizer=draft_tokenizer,
        gamma=gamma,
        verifier=verifier,
        tree=tree,
        tree_settings=tree_settings,
        shared_prefix=shared_prefix,
    )
    return engine.generate(inputs, generation_config, **call)


def stream(
    target: Model,
    draft: Model | str | None,
    inputs: Inputs | None = None,
    generation_config: Any = None,
    *,
    tokenizer: Any = None,
    draft_tokenizer: Any = None,
    gamma: int | None = None,
    verifier: str = "block",
    tree: str = "chain",
    tree_settings: Mapping[str, Any] | None = None,
    shared_prefix: int = 0,
    **call: Any,
) -> Iterator[Event]:
    """Like `generate`, as an iterator of events: the new tokens of one row in one round."""
    engine = Engine(
        target,
        draft,
        tokenizer=tokenizer,
        draft_tokenizer=draft_tokenizer,
        gamma=gamma,
        verifier=verifier,
        tree=tree,
        tree_settings=tree_settings,
        shared_prefix=shared_prefix,
    )
    return engine.stream(inputs, generation_config, **call)


@dataclass(slots=True)
class _Parts:
    """The parts that hold caches; they are reused by later calls."""

    target: Alignment
    drafter: Drafter
    clock: Clock
    alignments: list[Alignment]  # the target's, and those of the drafter
    prepared_for: int | None = None  # the batch size that the drafter has last measured for


class Engine:
    """A target, a draft and their caches, for any number of calls. Rows of different calls are never batched together.

    Args:
        target: the model whose output is wanted: a model of `transformers`, or a CausalLM.
        draft: a smaller model of the same vocabulary; the name of a drafter that needs none ("prompt_lookup",
            "trigram", "self"); or None for plain batched decoding.
        tokenizer: needed for texts and stop strings. draft_tokenizer: the draft's own, if it differs.
        gamma: drafted tokens per row and round; None chooses by the draft's cost.
        verifier: how sampled rows are verified ("block", "rejection", "naive"); it does not matter for greedy rows.
        tree: what a draft model, or "self", drafts ("chain", "paths", "beam", "confidence"), gamma levels deep.
            tree_settings: the tree's own, such as ``{"width": 8}``.
        shared_prefix: hold first tokens that rows of a call have in common once, from this many on; 0: never. Rows of
            one prompt (num_return_sequences) then share all of it.

    Raises:
        PairError: a model cannot be run in aligned batches, or the two do not fit together. ConfigError: a setting.
    """

    def __init__(
        self,
        target: Model,
        draft: Model | str | None = None,
        *,
        tokenizer: Any = None,
        draft_tokenizer: Any = None,
        gamma: int | None = None,
        verifier: str = "block",
        tree: str = "chain",
        tree_settings: Mapping[str, Any] | None = None,
        shared_prefix: int = 0,
    ) -> None:
        if gamma is not None:
            whole_number("gamma", gamma, 0)
        entry = lookup("verifier", verifier)
        if entry.lossy or entry.known_incorrect or not entry.samples:
            raise ConfigError(f"verifier={verifier}: choose one that samples without loss: block, rejection or naive")
        self.tokenizer = tokenizer
        self.target = wrapped(target, "target")
        self.draft = None if draft is None or isinstance(draft, str) else wrapped(draft, "draft")
        self._draft_tokenizer = draft_tokenizer
        self._drafter = choose_drafter(draft, tokenizer, draft_tokenizer)
        check_device(self.target, self.draft)
        self._by_text = lookup("drafter", self._drafter).by_text
        check_fit(self.target, self.draft, tokenizer, draft_tokenizer, by_text=self._by_text, settings=False)
        self.gamma = choose_gamma(self.target, self.draft) if gamma is None else gamma
        self._tree = choose_tree(self._drafter, tree, tree_settings or {}, self.gamma)
        kind = self._tree.siblings
        self._refusal = "" if kind in entry.judges else why_not(verifier, entry.judges, f"tree={tree}", kind)
        self._sampling_verifier = create("verifier", verifier)
        self._greedy_verifier = create("verifier", "greedy")
        self._shared_prefix = whole_number("shared_prefix", shared_prefix, 0)
        for model in (self.target, self.draft):
            if shared_prefix and model is not None:
                check_sharing(model, f"shared_prefix={shared_prefix}", "shared_prefix=0")
        self._idle: list[_Parts] = [self._parts()]

    def generate(
        self,
        inputs: Inputs | None = None,
        generation_config: Any = None,
        *,
        input_ids: Inputs | None = None,
        attention_mask: Tensor | None = None,
        streamer: Any = None,
        seed: int | SequenceOf[int] | None = None,
        batch: int | None = None,
        **settings: Any,
    ) -> Tensor | SpeculativeOutput:
        """What the target's own ``generate`` returns for each row alone, as one block.

        Args:
            inputs: (B, W) token ids padded on either side, what a tokenizer returns, ragged lists of ids, or texts.
            generation_config: a GenerationConfig of `transformers`. input_ids: another name for inputs.
            attention_mask: (B, W), 1 for real tokens. Without one all tokens are real, whatever their ids.
            streamer: a streamer of `transformers` for one row; for more, a list with one streamer per row.
            seed: of sampling, or one per row; None draws one from torch's generator. A row's tokens depend on its
                seed and number, and not on the other rows.
            batch: most rows in flight at a time; None: all rows.
            settings: options of ``model.generate`` by name. max_length counts each row's own tokens.

        Returns:
            (B, W + N) ids: the inputs as given, then the new tokens from column W on, padded on the right; lists and
            texts are first padded on the left to a block. With return_dict_in_generate=True a SpeculativeOutput, which
            holds these ids as ``sequences``, with acceptance statistics.

        Raises:
            ConfigError: an option is unknown, unsupported or out of range. DataError: a row cannot be continued.
        """
        plan = self._plan(inputs, generation_config, input_ids, attention_mask, seed, batch, settings)
        streamers = streamers_of(streamer, plan.rows)
        recorder = _recorder(plan)
        for event in self._run(plan, recorder):
            if streamers:
                for token in event.tokens:
                    streamers[event.row].put(torch.tensor([token]))
                if event.stop_reason:
                    streamers[event.row].end()
        result = sequences(plan.block, plan.rows, plan.options.pad_token_id, self.target.device)
        return statistics(plan.rows, result, self.tokenizer, recorder) if plan.options.return_dict else result

    def stream(
        self,
        inputs: Inputs | None = None,
        generation_config: Any = None,
        *,
        input_ids: Inputs | None = None,
        attention_mask: Tensor | None = None,
        seed: int | SequenceOf[int] | None = None,
        batch: int | None = None,
        **settings: Any,
    ) -> Iterator[Event]:
        """The same tokens as `generate`, as one event per row and round. Errors are raised here, not by ``next``."""
        return self._run(self._plan(inputs, generation_config, input_ids, attention_mask, seed, batch, settings))

    def _plan(self, inputs: Any, generation_config: Any, input_ids: Any, *call: Any) -> Plan:
        """The call as checked rows; no model runs before everything is checked."""
        if (inputs is None) == (input_ids is None):
            raise ConfigError("inputs: give the prompts once, as inputs or as input_ids")
        models = [model for model in (self.target, self.draft) if model is not None]
        check_unmoved(models)
        readers = models[:1] if self._by_text else models
        plan = make_plan(readers, self.tokenizer, input_ids if inputs is None else inputs, generation_config, *call)
        if plan.options.samples and self._refusal:
            raise ConfigError(self._refusal)
        return plan

    def _run(self, plan: Plan, recorder: ScoreRecorder | None = None) -> Iterator[Event]:
        """Rounds until the last row ends. Only a call that runs to its end leaves empty caches, which are reused."""
        parts = self._idle.pop() if self._idle else self._parts()
        if parts.prepared_for != plan.batch:
            with evaluating(self.target, self.draft):
                parts.drafter.prepare(plan.batch)
            parts.prepared_for = plan.batch
        rounds = RoundLoop(
            parts.target,
            parts.drafter,
            self._sampling_verifier if plan.options.samples else self._greedy_verifier,
            create("scheduler", "continuous", plan.batch, plan.batch),
            create("draft_length", "fixed", gamma=self.gamma),
            parts.clock,
            prefill_chunk=PREFILL_CHUNK,
            recorder=recorder,
        )
        pool = SequencePool(plan.rows)
        while not pool.done:
            with evaluating(self.target, self.draft):
                outcome = rounds.step(pool)
            yield from events_of(outcome)
        for alignment in parts.alignments:
            alignment.hold([])  # weights may change before the next call, and shared prefixes would be of the old ones
        self._idle.append(parts)

    def _parts(self) -> _Parts:
        """Empty caches, and a drafter with caches of its own."""
        clock, alignments = Clock(), list[Alignment]()

        def align(model: CausalLM) -> Alignment:
            alignments.append(InplaceAlignment(model, clock, shared_prefix=self._shared_prefix))
            return alignments[-1]

        tools = (clock, self.tokenizer, self._draft_tokenizer)
        context = DrafterContext(self.target, self.draft, align, *tools, tree=self._tree)
        return _Parts(align(self.target), create("drafter", self._drafter, context), clock, alignments)


def _recorder(plan: Plan) -> ScoreRecorder | None:
    wanted = {name.removeprefix("output_"): True for name in plan.options.outputs}
    normalized = plan.options.samples and bool(plan.options.processing.get("renormalize_logits"))
    return ScoreRecorder(**wanted, normalized=normalized) if wanted else None
