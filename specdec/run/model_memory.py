"""The memory of one model in a run: its keys and values, and its largest forwards, from shapes.

Forwards are those of the built-in executions: a part of a layer exists once, whichever layer is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from specdec.alignment.base import Admitted, Alignment
from specdec.alignment.prefixes import CHUNK_TOKENS
from specdec.models.architecture import Architecture
from specdec.models.kv import GROWTH_COLUMNS, grown_columns
from specdec.models.live_bytes import ScanBytes

RAGGED_TOKENS = 192  # whose MLP a ragged execution computes at once, at most
LAW_BYTES = 12  # per logit while distributions are computed: float32 scores, float64 probabilities
NO_SCAN = ScanBytes()
EAGER, FUSED, RAGGED = "eager", "fused", "ragged"
"""How forwards are computed: by the model's own code; with folded masks and without repeated keys; without padding."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What the rows in flight hold once."""

    columns: int  # of keys and values, of all parts together
    path: int  # columns of them that a row reads, at most
    own: int  # tokens that a prompt has to itself, at most


@dataclass(frozen=True, slots=True)
class RunSize:
    """What all models of a run share; every row counts with the longest possible length."""

    batch: int
    in_flight: int  # rows that have a cache, at least the batch
    prompt: int  # tokens of the longest one
    chunk: int  # of these, those read in one forward
    max_new_tokens: int
    sampled: bool
    sharing: Sharing | None = None  # None: rows share nothing

    @property
    def shared(self) -> Sharing:
        """What is held once."""
        return self.sharing or Sharing(0, 0, self.prompt)


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """A model, and what it is fed."""

    architecture: Architecture
    alignment: type[Alignment]
    num_fed: int  # tokens of a row between two commits, at most
    step: int  # of these, those in one forward
    num_logits: int  # vectors of logits that a row gets in a step
    kind: str = EAGER
    num_laws: int = 0  # of these, those of which distributions are made at once, where rows sample
    num_hidden: int = 0  # layers whose hidden states are wanted of every token
    scan: ScanBytes = NO_SCAN  # what reading a prompt takes in a model with recurrent states

    def kept_bytes(self, run: RunSize) -> float:
        """Keys and values, and recurrent states with their checkpoints, during a forward."""
        states = self.alignment.kept_states(self._rows(run)) * self.architecture.states.num_bytes
        columns = run.shared.columns + self.alignment.kept_columns(self._rows(run))
        return columns * self.architecture.token_bytes + states

    def workspace_bytes(self, run: RunSize) -> float:
        """What a ragged execution keeps from one forward to the next, of all tokens of the largest."""
        if self.kind != RAGGED:
            return 0
        sizes = self.architecture
        tokens = max(run.in_flight * run.chunk, run.batch * self.step, min(run.shared.path, CHUNK_TOKENS))
        queries, keys = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
        of_all = tokens * (sizes.hidden_size + queries)
        passing = min(tokens, RAGGED_TOKENS) * (sizes.hidden_size + queries + 2 * keys + 2 * sizes.intermediate_size)
        return (of_all + passing) * sizes.dtype.itemsize

    def moved_bytes(self, run: RunSize) -> float:
        """Further keys and values while rows are moved."""
        return self.alignment.moved_columns(self._rows(run)) * self.architecture.token_bytes

    def moves_first(self, run: RunSize) -> bool:
        """Whether rows are moved only before the first forward: their storage never grows again."""
        return self.alignment.prompts_by_position and self._rows(run).columns_before <= GROWTH_COLUMNS

    def prompt_bytes(self, run: RunSize) -> float:
        """The forward that reads a part of the prompts of all rows, who are admitted at once at the start."""
        whole, masked = run.chunk >= run.shared.own, not self.alignment.prompts_by_position
        wants_logits = not self.num_hidden or not whole
        num_logits = (1 if whole else run.chunk) if wants_logits else 0
        prefix = self._forward_bytes(1, min(run.shared.path, CHUNK_TOKENS), run.shared.path, 1, masked)
        own = self._forward_bytes(run.in_flight, run.chunk, run.prompt, num_logits, masked)
        scan = self.scan.of(run.in_flight, run.chunk)
        return max(prefix, scan, own + self._part_bytes(run, run.in_flight * run.chunk, run.prompt))

    def context_bytes(self, run: RunSize) -> float:
        """Keys and values that are made of hidden states, without a forward: the projected states, twice, and these."""
        sizes = self.architecture
        per_token = 2 * sizes.hidden_size + 4 * sizes.num_kv_heads * sizes.head_dim
        return run.in_flight * run.chunk * per_token * sizes.dtype.itemsize

    def step_bytes(self, run: RunSize) -> float:
        """The largest forward of a round, and the distributions that are made of its logits."""
        rows = self.alignment.fed_rows(run.in_flight, run.batch)
        columns = run.shared.path + self._rows(run).length
        laws = LAW_BYTES * run.batch * self.num_laws * self.architecture.vocab_size if run.sampled else 0
        whole = self._forward_bytes(rows, self.step, columns, self.num_logits, True)
        return whole + self._part_bytes(run, rows * self.step, columns) + laws

    def _part_bytes(self, run: RunSize, tokens: int, columns: int) -> float:
        """Scores in full, of an attention in parts."""
        in_parts = run.shared.path and self.kind == FUSED
        return tokens * columns * self.architecture.num_heads * 4 if in_parts else 0

    def _rows(self, run: RunSize) -> Admitted:
        prompt = run.shared.own
        length = prompt + run.max_new_tokens + self.num_fed
        columns, before = grown_columns(prompt, run.chunk, length, max(self.num_fed, 1))
        return Admitted(run.in_flight, run.batch, self.num_fed, length, columns, before)

    def _forward_bytes(self, rows: int, new: int, columns: int, num_logits: int, masked: bool) -> float:
        """One layer, the mask, and what is returned; without weights and cache."""
        sizes, tokens = self.architecture, rows * new
        itemsize, hidden, inner = sizes.dtype.itemsize, sizes.hidden_size, sizes.intermediate_size
        queries, keys = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
        pairs, states = tokens * columns, tokens * self.num_hidden * hidden * itemsize
        given = rows * num_logits * sizes.vocab_size * itemsize + states
        if self.kind == RAGGED:
            return (3 * pairs if masked else 0) + given
        projected = 2 * queries + 3 * keys
        if self.kind == FUSED:
            groups = max(sizes.num_heads // sizes.num_kv_heads, 1)
            layer = tokens * (4 * hidden + max(5 * inner, 2 * projected))
            return (layer + groups * pairs) * itemsize + 2 * pairs + given + states
        repeated = 2 * rows * queries * columns if sizes.num_heads > sizes.num_kv_heads else 0
        scores = 2 * pairs * sizes.num_heads if sizes.eager_attention else 0
        attention = tokens * (projected + queries) + repeated + scores + pairs
        layer = tokens * (3 * hidden + 2 * sizes.head_dim) + max(3 * inner * tokens, attention)
        all_states = (sizes.num_layers + 1) * tokens * hidden if self.num_hidden else 0
        return (layer + all_states) * itemsize + 2 * pairs + given
