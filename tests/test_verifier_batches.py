"""Verifiers of chains in batches: a row is decided as if it were alone, and what they cannot do is refused."""

from __future__ import annotations

import pytest
import torch

from specdec.core.round import Draft
from specdec.core.sampling import Noise
from specdec.errors import ContractError
from specdec.verifiers.block import BlockVerifier
from specdec.verifiers.greedy import GreedyVerifier
from specdec.verifiers.naive import NaiveVerifier
from specdec.verifiers.rejection import RejectionVerifier
from specdec.verifiers.typical import TypicalVerifier

VERIFIERS = {
    "rejection": RejectionVerifier(),
    "block": BlockVerifier(),
    "naive": NaiveVerifier(),
    "typical": TypicalVerifier(epsilon=0.09, delta=0.3),
}


def batch_of(lengths: list[int], vocab: int = 7, seed: int = 0) -> tuple[Draft, torch.Tensor, Noise]:
    """Rows with different draft lengths; what stands behind them is rubbish that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    B, G = len(lengths), max(lengths)
    q = torch.rand(B, G, vocab, generator=generator).double().pow(2)
    q = q / q.sum(-1, keepdim=True)
    p = torch.rand(B, G + 1, vocab, generator=generator).double().pow(2)
    p = p / p.sum(-1, keepdim=True)
    tokens = torch.multinomial(q.reshape(B * G, vocab), 1, generator=generator).reshape(B, G)
    for b, length in enumerate(lengths):
        p[b, length + 1 :] = torch.nan
        q[b, length:] = torch.nan
    draws = torch.rand(B, G + 1, generator=generator).double()
    return Draft(tokens, lengths, probs_BGV=q), p, Noise(draws, torch.rand(B, G, generator=generator).double())


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("with_probs", [True, False])
def test_a_row_is_decided_as_if_it_were_alone(verifier, with_probs):
    """Different draft lengths in a batch, 0 among them: each row's last token is its own, not the batch's."""
    for seed in range(20):
        lengths = [[3, 0, 5, 1, 4, 5], [1, 2, 2], [0, 0]][seed % 3]
        draft, p, noise = batch_of(lengths, seed=seed)
        if not with_probs:
            draft.probs_BGV = None
        together = VERIFIERS[verifier].verify_sampled(draft, p, noise)
        for b, length in enumerate(lengths):
            probs = draft.probs_BGV[b : b + 1, :length] if with_probs else None
            alone = VERIFIERS[verifier].verify_sampled(
                Draft(draft.tokens_BG[b : b + 1, :length], [length], probs_BGV=probs),
                p[b : b + 1, : length + 1],
                Noise(noise.draws_BT[b : b + 1, : length + 1], noise.tests_BG[b : b + 1, :length]),
            )
            assert (together.paths[b], together.next_tokens[b]) == (alone.paths[0], alone.next_tokens[0])


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_one_hot_laws_are_the_longest_match(verifier):
    """A greedy row in a batch that samples, and temperature 0 for every verifier."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        logits = torch.randn(4, 4, 3, generator=generator).double()
        tokens = torch.randint(3, (4, 3), generator=generator)
        p = torch.nn.functional.one_hot(logits.argmax(-1), 3).double()
        noise = Noise(torch.rand(4, 4, generator=generator).double(), torch.rand(4, 3, generator=generator).double())
        draft = Draft(tokens, [3, 2, 1, 3])
        wanted = GreedyVerifier().verify(draft, logits)
        assert VERIFIERS[verifier].verify(draft, logits) == wanted
        assert VERIFIERS[verifier].verify_sampled(draft, p, noise) == wanted


@pytest.mark.parametrize("verifier", ["rejection", "block"])
def test_trees_are_refused_by_name(verifier):
    draft, p, noise = batch_of([2])
    draft.parents = [[-1, -1]]
    with pytest.raises(ContractError, match="verifier=naive"):
        VERIFIERS[verifier].verify_sampled(draft, p, noise)


def test_a_greedy_verifier_says_that_it_cannot_sample():
    draft, p, noise = batch_of([2])
    with pytest.raises(ContractError, match="greedy rows only"):
        GreedyVerifier().verify_sampled(draft, p, noise)
