"""Small plausible bugs, each planted alone into the source of something correct."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from types import ModuleType

SHARED = ("content", "layout", "slots", "columns")  # alignment modules that strategies are built on, in this order


@dataclass(frozen=True)
class Mutation:
    """Replace ``old``, which must stand in ``module`` exactly once, and look at ``entry`` built on the result."""

    name: str
    entry: str
    module: str
    old: str
    new: str

    def plant(self) -> ModuleType:
        """The entry module, made anew on the changed source."""
        return rebuilt(self.entry, self)

    def source(self) -> str:
        """The changed source."""
        text = inspect.getsource(importlib.import_module(f"specdec.{self.module}"))
        count = text.count(self.old)
        assert count == 1, f"{self.name}: {self.old!r} stands {count} times in {self.module}; mend the mutation"
        return text.replace(self.old, self.new)


def rebuilt(entry: str, mutation: Mutation | None = None) -> ModuleType:
    """Execute the entry's source, and those it is built on, as fresh modules; the real ones stay as they are."""
    group = entry.partition(".")[0]
    below = {"alignment": [f"alignment.{name}" for name in SHARED], "engine": ["reading", "prefill"]}
    names = [f"specdec.{name}" for name in (*below.get(group, ["drafters.steps"]), entry)]
    kept = {name: importlib.import_module(name) for name in names}
    try:
        for name in names:
            module = ModuleType(name)
            changed = mutation is not None and name == f"specdec.{mutation.module}"
            text = mutation.source() if changed and mutation else inspect.getsource(kept[name])
            sys.modules[name] = module
            exec(compile(text, f"<{name}, rebuilt>", "exec"), module.__dict__)
        return module
    finally:
        sys.modules.update(kept)


def _of(strategy: str, *mutations: tuple[str, str, str, str]) -> list[Mutation]:
    entry = f"alignment.{strategy}"
    return [Mutation(name, entry, f"alignment.{module}", old, new) for name, module, old, new in mutations]


ALIGNMENT = [
    *_of(
        "eqspec",
        ("position off by one", "content", "[self.length + depth for depth", "[self.length + depth + 1 for depth"),
        ("position of a chain restarts in every forward", "content",
         "depth = self.depths[-1] + 1 if self.depths else 0", "depth = 0"),
        ("tree depth counted as node number", "content",
         "self.depths.append(0 if parent < 0 else self.depths[parent] + 1)", "self.depths.append(len(self.depths))"),
        ("a rejected node is kept", "content",
         "self.length = stay + len(nodes)", "self.length = stay + len(nodes) + 1"),
        ("mask one column short at its start", "layout",
         "(columns_S >= starts_B1) &", "(columns_S > starts_B1) &"),
        ("mask one column short at its end", "layout",
         "(columns_S < starts_B1 + lengths_B1)", "(columns_S < starts_B1 + lengths_B1 - 1)"),
        ("mask one column too wide: a stale column is visible", "layout",
         "(columns_S < starts_B1 + lengths_B1)", "(columns_S < starts_B1 + lengths_B1 + 1)"),
        ("siblings see each other", "layout", "in content.ancestors(first + t))", "in range(first + t + 1))"),
        ("padding of the prompt is attended", "eqspec",
         "causal(width, self.model.device) & real_BS[:, None]",
         "causal(width, self.model.device).repeat(len(rows), 1, 1)"),
        ("lengths taken from the pad id", "eqspec",
         "self._contents[row].length = len(content)", "self._contents[row].length = sum(map(bool, content))"),
        ("columns are not moved when the padding changes", "eqspec",
         "if len(run) and not (run.consecutive and run.start == pad):", "if len(run) and not run.consecutive:"),
        ("the wrong row is moved", "eqspec",
         "data_NHSD = storage.data_NBHSD[:, b]", "data_NHSD = storage.data_NBHSD[:, 0]"),
        ("a row's own padding is forgotten when it is taken out", "eqspec",
         "pad = self._pads[row]\n", "pad = min(self._pads.values())\n"),
        ("tree path taken as if it were consecutive", "eqspec",
         "return all(column == stop + i for i, column in enumerate(self.nodes))", "return True"),
    ),
    *_of(
        "inplace",
        ("write cursor one column late", "inplace",
         "starts = [content.length + len(content.parents) for",
         "starts = [content.length + len(content.parents) + 1 for"),
        ("rows answered in the order of the slots", "inplace",
         "return logits_BTV[order_B.argsort()]", "return logits_BTV"),
        ("a tree's path is not moved together", "inplace", "if nodes != list(range(len(nodes))):", "if False:"),
        ("a moved row leaves its first column behind", "slots",
         "data_NBHSD[:, slot, :, :width] = data_NBHSD[:, self.slot[row], :, :width]",
         "data_NBHSD[:, slot, :, 1:width] = data_NBHSD[:, self.slot[row], :, 1:width]"),
        ("two newcomers share a slot", "slots",
         "free = [slot for slot in range(len(taken) + len(rows)) if slot not in taken]",
         "free = [max(taken, default=-1) + 1] * len(rows)"),
        ("a query sees the column behind its own", "slots",
         "<= columns_BT[..., None]", "<= columns_BT[..., None] + 1"),
        ("growing the slots loses what was written", "slots",
         "grown.data_NBHSD[:, :have, :, : self.kv.width] = self.kv.data_NBHSD[..., : self.kv.width, :]\n", "pass\n"),
    ),
    *_of(
        "masked",
        ("rejected columns are kept instead of the accepted", "columns",
         "[self.nodes[row][node] for node in nodes]\n            self.nodes[row] = []",
         "self.nodes[row][-len(nodes) :][: len(nodes)]\n            self.nodes[row] = []"),
        ("compaction forgets to move the uncommitted", "columns",
         "old = self.columns[row] + self.nodes[row]", "old = self.columns[row] + self.nodes[row][:0]"),
        ("compaction moves the batch's first row only", "columns",
         "data_NHSD = self.kv.data_NBHSD[:, b]", "data_NHSD = self.kv.data_NBHSD[:, 0]"),
        ("a row that leaves takes another's cache along", "columns",
         "data_NHSD = self.kv.data_NBHSD[:, self.rows.index(row)]", "data_NHSD = self.kv.data_NBHSD[:, 0]"),
    ),
    *_of(
        "rollback",
        ("the first nodes are fed again in place of the kept ones", "rollback",
         "[self._node_tokens[row][node] for node in nodes]", "self._node_tokens[row][: len(nodes)]"),
        ("what is owed is not fed again", "rollback",
         "del columns[bisect_left(columns, cut) :]", "pass"),
        ("owed tokens at the positions of the new ones", "rollback",
         "list(range(cached, content.length))", "list(range(cached + 1, content.length + 1))"),
        ("owed tokens see their successors", "rollback",
         "(committed_BS[:, None] & (columns_S <= queries_T[:, None]))", "committed_BS[:, None]"),
    ),
    *_of(
        "expansion",
        ("the copy of the first kept node is brought home", "expansion",
         "self._copies[row][nodes[-1]]", "self._copies[row][nodes[0]]"),
        ("the neighbour's content is copied", "expansion",
         "base.kv.data_NBHSD[:, base.index, :, : base.length]", "base.kv.data_NBHSD[:, 0, :, : base.length]"),
        ("logits read one token early", "expansion",
         "[len(branch.path) - 1 for branch in branches]", "[max(len(branch.path) - 2, 0) for branch in branches]"),
    ),
]  # fmt: skip
DRAFTER = [
    Mutation("draft cache not rolled back", "drafters.model", "drafters.steps",
             "[_settled(row, row.length) for row in fed]", "[row.length for row in fed]"),
    Mutation("draft cache of a row that drafted nothing cut all the same", "drafters.model", "drafters.steps",
             "self._fed = drafting", "self._fed = rows"),
    Mutation("the draft reads the last column of a ragged feed", "drafters.model", "drafters.steps",
             "last_B = torch.tensor(counts, device=device).clamp(min=1) - 1",
             "last_B = torch.tensor([max(counts)] * len(counts), device=device) - 1"),
    Mutation("only one token of the lag is fed", "drafters.model", "drafters.steps",
             "missing = [row.tokens(self._reader.length(row)) for row in fed]",
             "missing = [row.tokens(row.length - 1) for row in fed]"),
]  # fmt: skip
ENGINE = [
    Mutation("last token of the prompt fed twice", "engine", "prefill",
             "stops.append(len(row.prompt_ids) - 1 - self._unread[row.index])",
             "stops.append(len(row.prompt_ids) - self._unread[row.index])"),
    Mutation("one accepted token too many committed", "engine", "engine",
             "[[0, *(node + 1 for node in path)] for _, path in alive]",
             "[[0, *(node + 1 for node in path), *([len(path) + 1] if path else [])] for _, path in alive]"),
    Mutation("the batch's draft cut to its neediest row", "engine", "engine",
             "[min(gamma, row.num_remaining - 1) for gamma, row in zip(wished, rows, strict=True)]",
             "[min(gamma, min(r.num_remaining for r in rows) - 1) for gamma in wished]"),
]  # fmt: skip
