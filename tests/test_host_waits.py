"""How often the host waits for the device in a round: once, for the round's tokens.

Between two waits the host queues a whole round's work. Every further one leaves the device idle while the host
prepares what follows.
"""

from __future__ import annotations

from collections import Counter

import pytest
from cases import short_only
from pretend_cuda import GPU, PretendCuda
from test_gpu import SAMPLED, engine_of, rows_of

from specdec import registry
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import SequencePool

PENALIZED = SamplingParams(temperature=0.0, repetition_penalty=1.3)
MORE = {
    "recycling": 2,  # the successors that it learns are kept on the host
    "retokenize": 2,  # drafts are translated through text, which is on the host
    "bigram": 2,  # the example plug-in uploads its drafts as a list
    "typical": 2,  # the token after the accepted ones is drawn once their number is known on the host
}


def waits_per_round(batch: int, sampling: SamplingParams | None, **chosen: str) -> tuple[list[int], Counter[str]]:
    """The waits of every round in which no prompt is read, and where they are."""
    with PretendCuda() as gpu:
        engine, pool, counts = engine_of(GPU, batch=batch, **chosen), SequencePool(rows_of(sampling)), []
        places: Counter[str] = Counter()
        while not pool.done:
            gpu.waits.clear()
            outcome = engine.step(pool)
            if not outcome.seconds["prefill"]:
                counts.append(gpu.num_waits)
                places += gpu.waits
    return counts, places


@pytest.mark.parametrize("batch", short_only([1, 4], 4))
@pytest.mark.parametrize(
    ("sampling", "verifier"),
    [(None, "greedy"), (PENALIZED, "greedy"), (SAMPLED, "block"), (SAMPLED, "rejection"), (SAMPLED, "naive")],
    ids=["greedy", "penalty", "block", "rejection", "naive"],
)
@pytest.mark.parametrize("drafter", ["model", "prompt_lookup"])
def test_one_wait_per_round(drafter, sampling, verifier, batch):
    counts, places = waits_per_round(batch, sampling, drafter=drafter, verifier=verifier)
    assert set(counts) == {1}, places


@pytest.mark.parametrize(
    ("tree", "sampling"),
    short_only(
        [(tree, sampling) for tree in registry.names("tree") for sampling in (None, SAMPLED)],
        *((tree, None) for tree in registry.names("tree")),
        ci=[("paths", SAMPLED), ("confidence", SAMPLED)],
    ),
)
def test_a_tree_waits_once_per_level_where_its_shape_is_not_known(tree, sampling):
    """Three levels deep. Greedy paths are chains, and the children of a greedy gumbel tree all exist."""
    known = {"chain", "static"} if sampling else {"chain", "static", "paths", "delayed", "gumbel"}
    verifier = "naive" if sampling else "greedy"
    counts, places = waits_per_round(2, sampling, drafter="model", tree=tree, verifier=verifier)
    forks_at = 2 if tree == "delayed" else 0  # the trunk is one node per level
    assert max(counts) == 1 + (0 if tree in known else 3 - forks_at), places


@pytest.mark.parametrize(
    ("group", "name"),
    short_only(
        [(group, name) for group in ("drafter", "verifier") for name in registry.names(group)],
        ("drafter", "model"),
        ("drafter", "ppd"),
        ("verifier", "block"),
        ("verifier", "naive_tree"),
        ci=[*(("drafter", name) for name in ("eagle3", "retokenize", "trigram")), ("verifier", "traversal")],
    ),
)
def test_every_drafter_and_verifier(group, name):
    sampled = group == "verifier" and registry.create(group, name).samples
    counts, places = waits_per_round(2, SAMPLED if sampled else None, **{group: name})
    assert max(counts) <= MORE.get(name, 1), places
    assert max(counts) == MORE.get(name, 1)


@pytest.mark.parametrize("name", short_only(registry.names("budget"), "early_stop", "global_optimum"))
def test_a_budget_waits_once_more(name):
    """The host lays out the verifying forward, so it must know what is kept."""
    budget = registry.create("budget", name)
    counts, places = waits_per_round(2, None, budget=name)
    assert max(counts) == 1 + budget.reads_certainty, places
