"""Heads against the packages `speculators` and `dflash`: the same logits for ragged rows, at every step, and after
rejections.

tests/data/heads/ was written by scripts/make_head_vectors.py and make_dflash_vectors.py, in an environment of theirs.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from conftest import small_llama
from head_folders import golden, numbers, weight, write_golden

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.inplace import InplaceAlignment
from specdec.core.clock import Clock
from specdec.core.sequence import Sequence
from specdec.drafters.context import DrafterContext
from specdec.models.causal_lm import CausalLM
from specdec.registry import create
from specdec.trees.base import Children, Tree
from specdec.trees.chain import single
from specdec.trees.frontier import Frontier

VOCAB, SIZE, LENGTH, STEPS = 31, 16, 8, 3
TEXT = [(7 * i * i + 3 * i + 5) % VOCAB for i in range(LENGTH + 1)]
KNOWN, KEPT = [3, 5, 4], [2, 1, 3]
"""Tokens of the rows, all beginnings of one text; and how many of the next ones the target keeps."""


class OfText(Tree):
    """Drafts the text, and 0 after its end, whatever the scores."""

    def num_nodes(self, depth: int) -> int:
        return depth

    def grow(self, frontier: Frontier) -> Children:
        places = [row.length + frontier.depth for row in frontier.rows]
        return single(torch.tensor([[TEXT[place] if place < len(TEXT) else 0] for place in places]))


def drafter_of(vectors: dict[str, Any], folder, kind: str) -> tuple[Any, list[torch.Tensor]]:
    """The drafter, and the list that gets the logits of every call."""
    settings = {"vocab_size": VOCAB, "hidden_size": SIZE, "num_attention_heads": 2, "num_key_value_heads": 1}
    target, clock = CausalLM(small_llama(0, torch.float32, layers=4, **settings)), Clock()
    with torch.no_grad():  # folders may leave these to the target
        for name, part in (("embed_tokens", target.module.model.embed_tokens), ("lm_head", target.module.lm_head)):
            part.weight.copy_(weight(f"{name}.weight", (VOCAB, SIZE)))
    context = DrafterContext(target, None, lambda model: InplaceAlignment(model, clock), clock, tree=OfText())
    drafter = create("drafter", kind, context, path=write_golden(vectors, folder))
    seen: ClassVar[list[torch.Tensor]] = []
    plain = drafter.head.logits
    drafter.head.logits = lambda states: [logits := plain(states), seen.append(logits.clone())][0]
    return drafter, seen


def rounds_of(drafter: Any, hidden_TH: torch.Tensor, seen: list[torch.Tensor], gammas: list[int]):
    """Two rounds of ragged rows, the second after the target kept some tokens: the rows' lengths, and the logits."""
    rows = [Sequence(i, TEXT[:count], 20) for i, count in enumerate(KNOWN)]
    drafter.admit(rows)
    for kept in ([count - 1 for count in KNOWN], KEPT):
        starts = [row.length - 1 if row.output_ids else 0 for row in rows]
        if rows[0].output_ids:
            starts = [row.length - 1 - n for row, n in zip(rows, kept, strict=True)]
        width = max(kept)
        hidden_BTH = torch.stack([hidden_TH[start : start + width] for start in starts])
        drafter.observe_hidden(rows, hidden_BTH, [list(range(n)) for n in kept])
        if rows[0].output_ids:
            drafter.commit(rows)
        seen.clear()
        draft = drafter.propose(rows, gammas)
        yield [row.length for row in rows], draft
        for row, n in zip(rows, KEPT, strict=True):
            row.emit(TEXT[row.length : row.length + n])


def over_drafted(logits: torch.Tensor, vectors: dict[str, Any]) -> torch.Tensor:
    """Logits of the tokens that the head can draft; all others must be impossible."""
    drafted = vectors["integers"].get("t2d")
    if drafted is None:
        return logits
    mask = torch.tensor(drafted, dtype=torch.bool)
    assert (logits[..., ~mask] == -torch.inf).all()
    return logits[..., mask]


@pytest.mark.parametrize(("name", "num_compared"), [("eagle3", STEPS), ("eagle31", STEPS), ("eagle3_windows", 1)])
def test_eagle3_steps_as_in_speculators(name, num_compared, tmp_path):
    """With windows the first alone: speculators trains the later ones with the window of the first step's position."""
    vectors = golden(name)
    drafter, seen = drafter_of(vectors, tmp_path, "eagle3")
    expected_SLV = torch.tensor(vectors["logits"])
    hidden_TH = numbers("hidden", (LENGTH, 3 * SIZE), 2.0)
    for lengths, _ in rounds_of(drafter, hidden_TH, seen, [STEPS] * 3):
        assert len(seen) == STEPS
        for step, logits_BNV in enumerate(seen[:num_compared]):
            found_BV = over_drafted(logits_BNV[:, 0], vectors)
            expected_BV = expected_SLV[step, [length - 2 for length in lengths]]
            torch.testing.assert_close(found_BV, expected_BV, atol=1e-5, rtol=1e-5)


def test_parallel_eagle_slots_are_those_of_speculators(tmp_path):
    vectors = golden("peagle")
    drafter, seen = drafter_of(vectors, tmp_path, "peagle")
    expected_SLV = torch.tensor(vectors["logits"])
    hidden_TH = numbers("hidden", (LENGTH, 3 * SIZE), 2.0)
    gammas = [3, 2, 1]
    for lengths, draft in rounds_of(drafter, hidden_TH, seen, gammas):
        found_BGV = over_drafted(seen[0], vectors)
        for b, (length, gamma) in enumerate(zip(lengths, gammas, strict=True)):
            for step in range(min(gamma, LENGTH - (length - 2))):
                expected_V = expected_SLV[step, length - 2]
                torch.testing.assert_close(found_BGV[b, step], expected_V, atol=1e-5, rtol=1e-5)
                ids = torch.tensor(vectors["integers"]["t2d"]).nonzero()[:, 0]
                assert draft.ids[b][step] == ids[expected_V.argmax()]


class Told:
    """Picks the text, and keeps the logits that it is given."""

    probs_BGV = None
    seen: ClassVar[list[torch.Tensor]] = []

    def __init__(self, rows: list[Sequence]) -> None:
        self.rows, self.step = rows, 0
        Told.seen.clear()

    def __call__(self, logits_BV: torch.Tensor) -> torch.Tensor:
        Told.seen.append(logits_BV)
        self.step += 1
        return torch.tensor([(TEXT + [0] * 3)[row.length + self.step - 1] for row in self.rows])


@pytest.mark.parametrize(
    "name",
    [
        *("dflash", "dflash_windows", "dflash_two_sided", "dspark", "dspark_gated", "dspark_rnn"),
        *("zlab_dflash", "zlab_windows", "zlab_two_sided"),
    ],
)
def test_blocks_are_those_of_speculators_and_of_the_authors(name, tmp_path, monkeypatch):
    """The anchor is a row's last token; in DSpark, slot k knows the token before the one that it predicts."""
    kind = "dspark" if name.startswith("dspark") else "dflash"
    monkeypatch.setattr(f"specdec.heads.{kind}.Picker", Told)
    vectors = golden(name)
    drafter, seen = drafter_of(vectors, tmp_path, kind)
    anchors, expected_ABV = vectors["anchors"], torch.tensor(vectors["logits"])
    first, gammas, num_compared = 0 if kind == "dspark" else 1, [3, 2, 3], 0
    assert drafter.hidden_layers == ((2, 3) if name.startswith("zlab") else (2, 0, 3))
    hidden_TH = numbers("hidden", (LENGTH + 1, len(drafter.hidden_layers) * SIZE), 2.0)
    for lengths, draft in rounds_of(drafter, hidden_TH, seen, gammas):
        assert draft.num_drafted == gammas
        found_BGV = over_drafted(torch.stack(Told.seen, dim=1), vectors)
        for b, length in enumerate(lengths):
            if length - 1 in anchors:
                place, num_compared = anchors.index(length - 1), num_compared + 1
                expected_GV = expected_ABV[place, first : first + 3]
                torch.testing.assert_close(found_BGV[b], expected_GV, atol=1e-5, rtol=1e-5)
                if kind == "dspark":
                    expected_G = torch.tensor(vectors["confidence"])[place, :3].sigmoid()
                    torch.testing.assert_close(draft.chances_BG[b], expected_G, atol=1e-5, rtol=1e-5)
    assert num_compared >= 4


def test_the_first_step_of_mtp_is_that_of_speculators(tmp_path):
    """Its later steps have other keys: speculators trains each on the outputs of the step before alone."""
    vectors = golden("mtp")
    drafter, seen = drafter_of(vectors, tmp_path, "mtp")
    expected_TV = torch.tensor(vectors["logits"])[0]
    hidden_TH = numbers("hidden", (LENGTH + 1, SIZE), 2.0)
    num_compared = 0
    for lengths, _ in rounds_of(drafter, hidden_TH, seen, [2, 1, 2]):
        for b, length in enumerate(lengths):
            if length - 2 < len(expected_TV):
                torch.testing.assert_close(seen[0][b, 0], expected_TV[length - 2], atol=1e-5, rtol=1e-5)
                num_compared += 1
    assert num_compared >= 5
