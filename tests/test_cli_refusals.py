"""Settings that the command line refuses, each in one line."""

from __future__ import annotations

import pytest
from cases import nightly_but

SHORT = ["scheduler=exspc", "drafter=modle", "batch=1,2", "batch=abc", "debug.invariants_every=0", "weights=rnd"]
SHORT += ["data.category=[poetry]", "tree=paths tree.num_paths=500"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    nightly_but(
        [
            ("scheduler=exspc", "unknown scheduler 'exspc': choose from .*did you mean 'exspec'"),
            ("drafter=modle", "unknown drafter 'modle'.*did you mean 'model'"),
            ("schedular=exspec", "unknown setting 'schedular'.*did you mean 'scheduler'"),
            ("num_prompts=4", r"unknown setting 'num_prompts': did you mean data\.num_prompts\?"),
            ("batch=1,2", "batch=1,2: add -m for a sweep"),
            ("bach=3", "unknown setting 'bach'.*did you mean 'batch'"),
            ("batching.windw=3", r"unknown setting 'windw'.*did you mean 'window'\? \(in batching\)"),
            ("+anything=1", "unknown setting 'anything'"),
            ("batch=abc", "batch: Value 'abc'"),
            ("batch=0", "batch=0: it must be at least 1"),
            ("gamma=-1", "gamma=-1: it must be 0 or more"),
            ("weights=rnd", "unknown weights 'rnd'.*did you mean 'random'"),
            ("runner.dtype=fp8", "unknown runner.dtype 'fp8'"),
            ("runner.accelerator=tpu", "unknown runner.accelerator .tpu."),
            ("debug.invariants_every=0", "debug.invariants_every=0: it must be at least 1"),
            ("runner.devices=0", "runner.devices=0: give a number above 0"),
            ("pair.target=./nowhere", "pair.target=./nowhere: no such folder"),
            ("data.path=nope.jsonl", "data.path=nope.jsonl: no such file"),
            ("data.num_prompts=0", "data.num_prompts=0: it must be at least 1"),
            ("data.category=[poetry]", "unknown data.category 'poetry'"),
            ("data.overlong=cut", "unknown data.overlong 'cut'"),
            ("scheduler=exspec batching.window=2", "batching.window=2 is smaller than batch=4"),
            ("drafter=model pair.draft=null", "drafter=model needs a draft model"),
            (
                "drafter=ppd drafter.untrained=true verifier=rejection temperature=0.5",
                "verifier=rejection judges chains only; drafter=ppd chooses children",
            ),
            (
                "drafter=prompt_lookup drafter.matches=3 verifier=block temperature=0.5",
                "verifier=block judges chains only; drafter=prompt_lookup chooses children",
            ),
            ("drafter=trigram tree=gumbel", "set tree=chain, and drafter.nodes for a tree of its own"),
            (
                "tree=gumbel verifier=rejection temperature=0.5",
                "verifier=rejection judges chains only; tree=gumbel draws children without replacement: set verifier=",
            ),
            (
                "tree=beam drafter=trigram",
                "tree=beam with drafter=trigram: only drafters that step by a model grow trees",
            ),
            ("tree=paths tree.num_paths=0", "tree.num_paths=0: it must be at least 1"),
            (
                "tree=paths tree.num_paths=500",
                "tree=paths: 2500 nodes per row at a depth of 5 are more than the context",
            ),
            ("tree=delayed tree.trunk=5", "tree.trunk=5 leaves no depth for paths: set gamma above it"),
            ("pair.num_layers=2", "pair.num_layers=2 changes the architecture: it needs weights=random"),
        ],
        *SHORT,
    ),
)
def test_bad_settings_are_refused_in_one_line(run, argument, expected):
    import re

    code, _, err = run(*argument.split())
    assert code == 1
    assert len(err.strip().splitlines()) == 1, err
    assert re.search(expected, err), err


def test_a_missing_checkpoint_is_named_with_the_remedy(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = run("pair=vicuna")
    assert code == 1
    assert len(err.strip().splitlines()) == 1, err
    assert "lmsys/vicuna-7b-v1.3" in err
    assert "pair.target=FOLDER" in err
    assert "weights=random" in err
