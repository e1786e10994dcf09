"""The forward-only bound: the same forwards replayed without the loop, and what they cost."""

from __future__ import annotations

import pytest
from cases import short_only
from hydra import compose, initialize_config_module
from tampering import FAST

from specdec.config.resolve import resolve
from specdec.core.clock import Clock
from specdec.core.prompts import load_prompts
from specdec.models.pair import load_pair
from specdec.run.decode import Watch, decode
from specdec.run.factory import preserving_model_state
from specdec.run.forward_bound import bound_counts, bound_figures, work
from specdec.run.forward_log import ForwardLog, Shape, recording

SMALL = ["pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "pair.synthetic.residual_scale=0.02"]


def composed(*overrides):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=[*SMALL, "baseline=false", *overrides]))


@pytest.mark.parametrize(
    ("scheduler", "alignment"),
    short_only(
        [("static", "inplace"), ("static", "eqspec"), ("exspec", "eqspec"), ("static", "masked")], ("static", "eqspec")
    ),
)
def test_the_replay_runs_the_same_forwards(scheduler, alignment):
    cfg = composed(
        *(f"scheduler={scheduler}", f"alignment={alignment}", "batch=3", "max_new_tokens=8", "data.num_prompts=5"),
        *("warmup=false", "execution=eager"),
    )
    pair = load_pair(cfg)
    prompts, _ = load_prompts(cfg.data, pair.tokenizer, 100)
    seen: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def watch(module, args, kwargs):
        seen.append((id(module), tuple(kwargs["input_ids"].shape), tuple(kwargs["attention_mask"].shape)))

    hooks = [
        model.module.register_forward_pre_hook(watch, with_kwargs=True) for model in (pair.target, pair.draft) if model
    ]
    try:
        log = ForwardLog()
        decoded = decode(cfg, pair, prompts, watch=Watch(forwards=log))
        tally, clock = decoded.tally, decoded.clock
        ran = seen.copy()
        assert len(log.shapes) == len(ran) > tally.num_verify_calls
        assert [(s.num_rows, s.num_tokens) for s in log.shapes] == [ids for _, ids, _ in ran]
        seen.clear()
        log.replay()
        log.replay(prefill=True)
        rounds = [call for call, shape in zip(ran, log.shapes, strict=True) if not shape.prefill]
        starts = [call for call, shape in zip(ran, log.shapes, strict=True) if shape.prefill]
        assert 0 < len(starts) < len(rounds)
        num_warm = len(seen) - len(rounds) - len(starts)
        assert 0 < num_warm <= 8, "a few calls warm the caches"
        assert seen[4 : 4 + len(rounds)] == rounds, "in the same order, with the same shapes"
        assert seen[-len(starts) :] == starts
    finally:
        for hook in hooks:
            hook.remove()
    figures = bound_figures([bound_counts(log, clock, pair.target.device)])
    assert figures["num_forwards"] == len(rounds)
    assert 0.05 < figures["loop_efficiency"] < 3.0
    assert figures["bandwidth_share"] > 0


@pytest.mark.slow
def test_forwards_of_a_model_that_the_drafter_made_are_counted():
    """EAGLE's layer is no model of the pair, and is aligned apart from it."""
    cfg = composed("drafter=eagle", "drafter.untrained=true", "batch=2", "max_new_tokens=6", "data.num_prompts=2")
    pair = load_pair(cfg)
    prompts, _ = load_prompts(cfg.data, pair.tokenizer, 100)
    log = ForwardLog()
    decode(cfg, pair, prompts, watch=Watch(forwards=log))
    assert len({shape.model for shape in log.shapes}) == 2


@pytest.mark.slow
def test_forwards_between_rounds_are_not_the_runs():
    """A reference that is missing is decoded in between, by the same models."""
    cfg = composed("max_new_tokens=4", "data.num_prompts=2", "warmup=false", "batch=2")
    pair = load_pair(cfg)
    prompts, _ = load_prompts(cfg.data, pair.tokenizer, 100)
    alone = ForwardLog()
    decode(cfg, pair, prompts, watch=Watch(forwards=alone))
    inner = composed("max_new_tokens=2", "data.num_prompts=2", "warmup=false", "batch=1", "execution=eager")

    def decode_others(*_: object) -> None:
        with preserving_model_state(pair):
            decode(inner, pair, prompts)
            assert pair.target.execution.name == "eager"

    log = ForwardLog()
    decode(cfg, pair, prompts, watch=Watch((decode_others,), forwards=log))
    assert log.shapes == alone.shapes
    assert pair.target.execution.name in FAST


def test_recording_leaves_no_trace_and_is_charged_to_nobody():
    clock, observers = Clock(), []
    with pytest.raises(KeyError), recording(ForwardLog(), clock, observers):
        {}[len(observers) == 1]
    assert observers == []
    with clock.stage("verify"):
        clock.discount(5.0)
    assert clock.seconds["verify"] < -4.9


def test_the_work_of_a_forward_is_that_of_its_weights_and_its_cache():
    pair = load_pair(composed())
    target = pair.target

    def of(num_rows, num_tokens, num_columns):
        return work(target, Shape(id(target), num_rows, num_tokens, num_columns, 0, False))

    weights = sum(p.numel() for p in target.module.parameters()) - target.module.get_input_embeddings().weight.numel()
    per_column = 2 * target.num_layers * target.architecture.num_kv_heads * target.architecture.head_dim
    assert of(1, 1, 0) == (4 * weights, 2 * weights)
    assert of(3, 2, 10)[0] == 4 * (weights + 3 * 10 * per_column)
    assert of(3, 2, 0)[1] == 6 * of(1, 1, 0)[1]
