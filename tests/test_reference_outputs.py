"""The reference is the unmodified model's: what is wrong in our masks, or in a forward of ours, cannot be in both."""

from __future__ import annotations

import pytest
import torch
from cases import short_only
from conftest import greedy_alone, small_llama
from hydra import compose, initialize_config_module
from model_zoo import Entry, build
from transformers import GenerationConfig

from specdec.config.reference import method_settings, reference_run
from specdec.config.resolve import resolve
from specdec.core.sequence import Sequence
from specdec.models.causal_lm import CausalLM
from specdec.models.masks import MaskForm
from specdec.models.probe import ProbeResult
from specdec.run.reference_outputs import generate_alone

NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Mistral whose window of 8 tokens matters from the first prompt on, as a checkpoint."""
    path = tmp_path_factory.mktemp("mistral")
    module = build(Entry("mistral"), vocab_size=2048, max_position_embeddings=512)
    module.generation_config = GenerationConfig(repetition_penalty=1.5)  # the run's settings hold, not the model's
    module.save_pretrained(path)
    return path


def arguments(folder, *more):
    pair = ("pair=folder", f"pair.target={folder}", "pair.tokenizer=asset:tiny/tokenizer", "drafter=none")
    return (*pair, "data.num_prompts=3", f"max_new_tokens={NEW}", "batch=3", "warmup=false", "strict=true", *more)


@pytest.mark.parametrize("scheduler", short_only(["eqspec", "continuous"], "continuous"))
def test_a_run_is_compared_with_transformers_generate(run, folder, scheduler):
    code, out, err = run(*arguments(folder, f"scheduler={scheduler}", "baseline=false"))
    assert code == 0, err
    assert "3/3" in out


@pytest.mark.slow
def test_a_wrong_mask_is_not_in_the_reference_too(run, folder, monkeypatch):
    """Masks without their window, past a probe that says yes: the reference must not be made with them."""
    masks = MaskForm.masks

    def blind(self, mask_BTS, dtype):
        return masks(MaskForm(((None, type(self.widest)("full")),), self.additive), mask_BTS, dtype)

    monkeypatch.setattr(MaskForm, "masks", blind)
    monkeypatch.setattr("specdec.models.compatibility.probe", lambda module: ProbeResult(0))
    code, out, err = run(*arguments(folder, "scheduler=eqspec", "baseline=false", "execution=eager"))
    assert code == 1
    assert "strict=true" in err
    assert "0/3" in out


@pytest.mark.parametrize("stop", [frozenset(), frozenset({7, 11})])
def test_a_row_is_what_generate_says(stop):
    model = CausalLM(small_llama(0, torch.float32))
    model.module.generation_config = GenerationConfig(repetition_penalty=2.0, eos_token_id=3)
    row = Sequence(0, [5, 9, 2, 7], 30, stop)
    generate_alone(model.module, row)
    assert model.module.generation_config.repetition_penalty == 2.0, "the model keeps its own settings"
    model.module.generation_config = GenerationConfig()
    assert row.output_ids == greedy_alone(model, row.prompt_ids, 30, stop)
    assert row.stop_reason == ("stop" if row.output_ids[-1] in stop else "length")


def test_a_sampled_method_is_compared_in_its_own_execution():
    """Eager and native round differently: on the first built-in pair 1 of 24 rows of 64 tokens then differed."""
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        sampled = ["verifier=block", "temperature=0.8"]
        eager, fused = (
            resolve(compose(config_name="config", overrides=[*sampled, f"execution={name}"]))
            for name in ("eager", "fused")
        )
    assert [reference_run(config).execution for config in (eager, fused)] == ["eager", "fused"]
    assert method_settings(eager) != method_settings(fused)
