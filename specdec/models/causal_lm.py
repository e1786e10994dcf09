"""A causal language model of `transformers`, run on KV storage that an alignment lays out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from specdec.core.outputs import LOGITS, Outputs
from specdec.errors import ContractError, PairError
from specdec.models.architecture import Architecture, context_length, num_read_weights
from specdec.models.execution.base import Call, Chains, Execution, Given, Layout
from specdec.models.execution.choice import make_execution
from specdec.models.kv import KVShape, KVStorage, KVWriter
from specdec.models.masks import MaskForm
from specdec.models.sparse_view import SparseView
from specdec.models.states import StateFeed

ModelObserver = Callable[["CausalLM", Call], Call]
"""Called before each forward of a model; returns the call to run, usually the one it was given."""


class CausalLM:
    """A model, its architecture, and how its forwards are executed.

    Args:
        module: a causal language model of `transformers`.
        form: how it takes masks, as ``specdec.models.compatibility`` found by trial; by default the most probable form.
        kv_shapes: heads and width of each layer's keys and values in turn; by default measured by a forward of one
            token.
    """

    view: SparseView | None = None  # what the queries of later forwards see of their rows; None: all

    def __init__(self, module: Any, form: MaskForm | None = None, kv_shapes: tuple[KVShape, ...] | None = None) -> None:
        self.module = module.eval()
        self.device: torch.device = module.device
        self.architecture = Architecture.of(module, form, kv_shapes)
        self.dtype = self.architecture.dtype
        self.vocab_size = self.architecture.vocab_size
        self.num_layers = self.architecture.num_layers
        self.num_read_weights = num_read_weights(module)
        self.context_length = context_length(module.config.get_text_config())
        self.max_columns: int | None = None  # most cache columns for which the model is exact; None: no limit
        self.notes: list[str] = []  # for the user
        self.observers: list[ModelObserver] = []
        self.outputs = LOGITS
        self._probes_MD: Tensor | None = None
        self._executions: dict[str, Execution] = {}
        self.execution: Execution
        self.execute("eager")

    @property
    def recurrent(self) -> bool:
        """Whether it keeps recurrent states, besides keys and values or instead of them."""
        return bool(self.architecture.states.parts)

    def empty_storage(self, num_rows: int, columns: int) -> KVStorage:
        """Storage for ``num_rows`` rows with room for ``columns``, none of them in use."""
        sizes = self.architecture
        shape = (len(sizes.kv_shapes), num_rows, sizes.num_kv_heads, columns, sizes.head_dim)
        return KVStorage(torch.zeros(shape, dtype=self.dtype, device=self.device), 0, sizes.kv_shapes)

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        mask_BTS: Tensor,
        writer: KVWriter,
        num_logits: int = 0,
        real_BT: Tensor | None = None,
        states: StateFeed | None = None,
        num_positions: int = 0,
    ) -> Tensor:
        """Run the model on new tokens.

        Args:
            tokens_BT: (B, T) ids, or (B, T, D) embeddings. positions_BT: (B, T) positions.
            mask_BTS: (B, T, S) bool: which of the writer's S columns each query sees.
            writer: where the new keys and values go.
            num_logits: how many of the last positions need logits; 0 means all.
            real_BT: (B, T) bool: the other tokens are padding, and what is returned for them is not defined.
            states: where a model with recurrent states finds and leaves them.
            num_positions: all positions are below it, where some are not below the number of columns.

        Returns:
            Logits (B, T or num_logits, V), or the outputs set by ``call_options``.

        Raises:
            PairError: the writer holds more columns than the model is exact for (``max_columns``).
        """
        return self._run(tokens_BT, Given(positions_BT, mask_BTS, num_positions), writer, num_logits, real_BT, states)

    def forward_chains(
        self,
        tokens_BT: Tensor,
        writer: KVWriter,
        num_logits: int = 0,
        real_BT: Tensor | None = None,
        num_positions: int | None = None,
        states: StateFeed | None = None,
    ) -> Tensor:
        """``forward`` of rows whose columns are positions: a token sees all columns up to the one it is written to.

        Args:
            num_positions: positions of padding past this many are lowered to the last of them.
        """
        last = min(self.context_length, num_positions or self.context_length) - 1
        layout = Chains(writer, tokens_BT.shape[1], last, self.device)
        return self._run(tokens_BT, layout, writer, num_logits, real_BT, states)

    @torch.inference_mode()
    def _run(
        self,
        tokens_BT: Tensor,
        layout: Layout,
        writer: KVWriter,
        num_logits: int,
        real_BT: Tensor | None,
        states: StateFeed | None,
    ) -> Tensor:
        if self.recurrent and states is None:
            raise PairError(f"{type(self.module).__name__} has recurrent states: only alignment=inplace restores them")
        if self.max_columns is not None and writer.num_columns > self.max_columns:
            raise PairError(
                f"{type(self.module).__name__} is exact up to {self.max_columns} columns of its cache and "
                f"{writer.num_columns} are needed: choose a smaller max_new_tokens, gamma, or alignment=inplace"
            )
        inputs = tokens_BT if self._probes_MD is None else self._embedded(tokens_BT, self._probes_MD)
        call = Call(inputs, layout, writer, num_logits, self.outputs, real_BT, states)
        if self.view is not None:
            call = self.view.of(call, self.execution.picks_columns)
        for observe in self.observers:
            call = observe(self, call)
        return self.execution.run(call)

    def execute(self, name: str, numerics: str = "default") -> Execution:
        """Choose how later forwards are executed; a prepared execution is reused.

        Args:
            name: auto, eager, fused, native or compiled.
            numerics: default, or invariant: the same bits for a row in any batch.

        Raises:
            ConfigError: there is no such execution, or it cannot run this model with these numerics.
        """
        key = f"{name} {numerics}"
        if key not in self._executions or not self._executions[key].is_valid():
            self._executions[key] = make_execution(name, self.module, self.architecture, numerics)
        self.execution = self._executions[key]
        return self.execution

    def refresh(self) -> None:
        """Make the execution in use again if weights that it has copied were changed in place."""
        if not self.execution.is_valid():
            self._executions = {}  # with their packed weights
            self.execute(self.execution.name)

    @contextmanager
    def call_options(
        self, outputs: Outputs, probes_MD: Tensor | None = None, view: SparseView | None = None
    ) -> Iterator[None]:
        """Options of the forwards within the block, which alignments need not pass on.

        Args:
            outputs: what a forward returns for each token.
            probes_MD: a drafter's embeddings for the ids from ``vocab_size`` on.
            view: what queries see of their rows; None: all.

        Raises:
            ContractError: there is no layer of a number in ``outputs``.
        """
        if not all(-1 <= number < self.num_layers for number in outputs.hidden):
            raise ContractError(
                f"hidden states {outputs.hidden} of a model of {self.num_layers} layers: -1 is the last"
            )
        before = self.outputs, self._probes_MD, self.view
        self.outputs, self._probes_MD, self.view = outputs, probes_MD, view
        try:
            yield
        finally:
            self.outputs, self._probes_MD, self.view = before

    def _embedded(self, tokens_BT: Tensor, probes_MD: Tensor) -> Tensor:
        """The embeddings (B, T, D) of ids, some of which may be probes."""
        embeds_BTD = self.module.get_input_embeddings()(tokens_BT.clamp(max=self.vocab_size - 1))
        probe_BT1 = (tokens_BT >= self.vocab_size)[..., None]
        number_BT = (tokens_BT - self.vocab_size).clamp(0, len(probes_MD) - 1)
        return torch.where(probe_BT1, probes_MD[number_BT], embeds_BTD)
