"""The oracle: rounding is an excuse where it decides a tie, a bug never is, however narrow the margin it meets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import VOCAB, greedy_alone, last_document, small_llama
from model_zoo import Entry, build

from specdec.cli import main
from specdec.core.files import read_lines
from specdec.equivalence.near_ties import FAILURE, NEAR_TIE, NOISE_FACTOR, classify_divergence
from specdec.equivalence.rounding import measure_rounding, rounding_of
from specdec.models.causal_lm import CausalLM

NEW = 24
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> CausalLM:
    return CausalLM(small_llama(0, getattr(torch, request.param)))


@pytest.fixture(scope="module")
def reference(model: CausalLM) -> list[int]:
    return greedy_alone(model, PROMPT, NEW, frozenset())


def tie(model: CausalLM, reference: list[int]) -> CausalLM:
    """The same model with the head changed so that two tokens are equal at the first output."""
    twin = CausalLM(small_llama(0, model.dtype))
    with torch.no_grad():
        winner, other = reference[0], (reference[0] + 1) % VOCAB
        twin.module.lm_head.weight[other] = twin.module.lm_head.weight[winner]
    return twin


def test_correct_computations_differ_by_rounding_only(model, reference):
    rounding = measure_rounding(model, PROMPT, reference, batch=4, chunk=6)
    assert rounding.logits_nV.shape == (NEW, VOCAB)
    assert rounding.logits_nV.argmax(-1).tolist() == reference
    scale = float(rounding.logits_nV.abs().max())
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.06}[model.dtype]
    assert 0 < rounding.rms <= rounding.largest < bound * scale


def test_a_tie_that_rounding_decides_is_explained(model, reference):
    tied = tie(model, reference)
    decided_V = measure_rounding(tied, PROMPT, reference, 4, 6).logits_nV[0].double()
    other = (reference[0] + 1) % VOCAB
    decided_V[other] += 1e-9
    result = classify_divergence(tied, PROMPT, [other, *reference[1:]], reference, decided_V, batch=4, chunk=6)
    assert result["kind"] == NEAR_TIE, result
    assert result["margin"] <= 2 * result["noise"]


def test_a_bug_at_a_tie_is_a_failure(model, reference):
    """Margin <= difference holds for every wrong argmax; what counts is that the run's logits are far off."""
    tied = tie(model, reference)
    rounding = measure_rounding(tied, PROMPT, reference, 4, 6)
    other = (reference[0] + 1) % VOCAB
    shift_V = torch.randn(VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    buggy_V = rounding.logits_nV[0].double() + 3 * NOISE_FACTOR * rounding.largest * shift_V
    buggy_V[other] = buggy_V.max() + 1e-9
    result = classify_divergence(tied, PROMPT, [other, *reference[1:]], reference, buggy_V, batch=4, chunk=6)
    assert result["margin"] <= 2 * result["noise"]
    assert result["margin"] <= result["difference"], "the naive rule would have excused it"
    assert result["kind"] == FAILURE, result


@pytest.mark.parametrize("size", [1.8, 2.2])
def test_logits_may_differ_by_twice_the_rounding(model, reference, size):
    """In one place by the largest of it, everywhere by its root mean square."""
    tied, other = tie(model, reference), (reference[0] + 1) % VOCAB
    rounding = measure_rounding(tied, PROMPT, reference, 4, 6)
    lowest = int(rounding.logits_nV[0].argmin())
    signs_V = torch.ones(VOCAB, dtype=torch.float64)
    signs_V[::2] = -1
    one_V, all_V = rounding.logits_nV[0].double(), rounding.logits_nV[0].double() + size * rounding.rms * signs_V
    one_V[lowest] -= size * rounding.largest
    for logits_V, place in ((one_V, ""), (all_V, ", over the whole vocabulary")):
        logits_V[other] = logits_V.max() + 1e-9
        result = classify_divergence(tied, PROMPT, [other, *reference[1:]], reference, logits_V, batch=4, chunk=6)
        reason = f"the run's logits differ by more than rounding{place}"
        assert result["reason"] == reason if size > 2 else result["kind"] == NEAR_TIE, result


@pytest.mark.parametrize("size", [1.5, 3.0])
def test_the_reference_may_prefer_its_token_by_twice_the_rounding(model, reference, size):
    """A run whose logits are nearly right may still not overturn what the reference decides more clearly."""
    winner, other, twin = reference[0], (reference[0] + 1) % VOCAB, tie(model, reference)
    tied = measure_rounding(twin, PROMPT, reference, 4, 6)
    with torch.no_grad():
        share = size * tied.largest / float(tied.logits_nV[0, winner])
        twin.module.lm_head.weight[other] = (twin.module.lm_head.weight[winner].double() * (1 - share)).to(model.dtype)
    rounding = measure_rounding(twin, PROMPT, reference, 4, 6)
    near_V = rounding.logits_nV[0].double()
    middle = (near_V[winner] + near_V[other]) / 2
    near_V[winner], near_V[other] = middle, middle + 1e-9
    result = classify_divergence(twin, PROMPT, [other, *reference[1:]], reference, near_V, batch=4, chunk=6)
    assert (result["margin"] > 2 * result["noise"]) == (size > 2), result
    assert result["difference"] <= 2 * result["noise"], "near enough, so that only the margin counts"
    assert result["kind"] == (FAILURE if size > 2 else NEAR_TIE), result


def test_what_is_no_rounding_is_a_failure(model, reference):
    logits_V = measure_rounding(model, PROMPT, reference, 4, 6).logits_nV[3]
    wrong = (reference[3] + 1) % VOCAB
    output = [*reference[:3], wrong, *reference[4:]]
    forced_V = logits_V.clone()
    forced_V[wrong] = forced_V.max() + 1
    for given, reason in ((logits_V, "argmax"), (forced_V, "margin"), (None, "not known")):
        result = classify_divergence(model, PROMPT, output, reference, given, batch=4, chunk=6)
        assert result["kind"] == FAILURE
        assert reason in result["reason"]
        assert result["position"] == 3
    for cut in (reference[:-2], [*reference, 1]):
        assert "ends after" in classify_divergence(model, PROMPT, cut, reference, logits_V, batch=4, chunk=6)["reason"]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["run.py", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, last_document(out), err


COMMON = ("data.num_prompts=4", "max_new_tokens=24", "baseline=false", "progress=false", "warmup=false", "strict=true")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [
        ("bsp", "float32"),
        pytest.param("bsp", "bfloat16", marks=pytest.mark.nightly),
        pytest.param("dsd", "float32", marks=pytest.mark.nightly),
        pytest.param("dsd", "bfloat16", marks=pytest.mark.nightly),
    ],
)
def test_published_defects_are_failures_and_strict_says_so(monkeypatch, capsys, tmp_path, dtype, wrong):
    code, point, err = run(
        monkeypatch, capsys, *COMMON, f"scheduler={wrong}", "allow_incorrect=true", f"runner.dtype={dtype}",
        f"results_dir={tmp_path}",
    )  # fmt: skip
    assert point["num_divergences"] == point["num_failures"] > 0
    assert point["num_explained"] == 0
    assert code == 1
    assert f"strict=true: {point['num_failures']} divergences" in err
    samples = list(read_lines(Path(point["path"]) / "samples.jsonl"))
    kinds = [sample["explanation"]["kind"] for sample in samples if not sample["exact"]]
    assert kinds == [FAILURE] * point["num_failures"]


@pytest.mark.parametrize(
    ("alignment", "num_prompts"),
    [
        ("inplace", 4),
        pytest.param("inplace", 10, marks=pytest.mark.nightly),
        pytest.param("eqspec", 10, marks=pytest.mark.nightly),
    ],
)
def test_correct_strategies_have_no_failure_in_bfloat16(monkeypatch, capsys, tmp_path, alignment, num_prompts):
    code, point, _ = run(
        monkeypatch, capsys, *COMMON, f"alignment={alignment}", "runner.dtype=bfloat16", "max_new_tokens=32",
        f"data.num_prompts={num_prompts}", f"results_dir={tmp_path}",
    )  # fmt: skip
    assert code == 0
    assert point["num_failures"] == 0
    assert point["num_divergences"] == point["num_explained"]


def test_strict_needs_a_reference(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["run.py", "strict=true", "reference=false", f"results_dir={tmp_path}"])
    with pytest.raises(SystemExit):
        main()
    assert "strict=true needs a reference" in capsys.readouterr().err


@pytest.mark.slow
def test_invariants_can_be_switched_on_for_a_run(monkeypatch, capsys, tmp_path):
    common = ("debug=invariants", "data.num_prompts=2", "max_new_tokens=8", "baseline=false", f"results_dir={tmp_path}")
    code, point, _ = run(monkeypatch, capsys, *common)
    assert (code, point["num_exact"]) == (0, 2)
    monkeypatch.setattr("sys.argv", ["run.py", *common, "alignment=bsp", "allow_incorrect=true"])
    with pytest.raises(SystemExit):
        main()
    err = capsys.readouterr().err
    assert "invariant 'position' is broken in round" in err
    assert len(err.strip().splitlines()) == 1


def test_what_was_measured_is_kept_as_long_as_the_model(model, reference):
    first = rounding_of(model, PROMPT, reference, 0, 4, 6)
    assert rounding_of(model, PROMPT, reference, NEW - 1, 4, 6) is first, "the same stretch of the row"
    assert rounding_of(model, PROMPT, reference, 0, 3, 6) is not first
    assert rounding_of(model, PROMPT, [*reference[:-1], reference[-1] ^ 1], 0, 4, 6) is not first


def test_the_noise_of_other_code_holds_the_distance_to_the_exact_logits():
    """A correct fused run rounds at other places than the model's own code, in whatever order that is run."""
    model = CausalLM(build(Entry("llama"), seed=6, max_position_embeddings=512).bfloat16())
    prompt, output = [(7 * i + 3) % 64 for i in range(30)], [(5 * i + 1) % 64 for i in range(32)]
    own = measure_rounding(model, prompt, output, batch=3, chunk=6)
    exact = model.module.float()(torch.tensor([prompt + output[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
    model.module.bfloat16()
    distance = float((own.logits_nV.double() - exact.double()).square().mean(-1).sqrt().max())
    model.execute("fused")
    other = measure_rounding(model, prompt, output, batch=3, chunk=6)
    assert other.rms >= distance > own.rms
