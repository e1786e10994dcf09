"""Loading pairs: local folders in Hub format, random weights, the synthetic dial, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from cases import short_only
from conftest import VOCAB, small_llama
from harness import make_engine, run_all
from hydra import compose, initialize_config_module
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import specdec.config
from specdec.config.identity import input_hashes
from specdec.config.resolve import resolve
from specdec.core.prompts import Prompt
from specdec.errors import ConfigError, PairError
from specdec.models import pair as pair_module
from specdec.models.pair import load_pair
from specdec.run.reference_outputs import reference_settings
from specdec.run.trial_rounds import profiler
from specdec.run.trial_rows import TrialRows


@pytest.fixture(autouse=True)
def _fresh_cache():
    pair_module._cache.clear()


def composed(*overrides):
    with initialize_config_module(version_base="1.3", config_module="specdec.conf"):
        return resolve(compose(config_name="config", overrides=list(overrides)))


def save_tokenizer(folder, words, eos="w1"):
    vocab = {word: i for i, word in enumerate(words)}
    plain = Tokenizer(models.WordLevel(vocab, unk_token=words[0]))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=eos).save_pretrained(folder)


@pytest.fixture
def checkpoint(tmp_path):
    """A local folder in Hub format, as `save_pretrained` writes it."""

    def make(name, seed=0, words=None, **changes):
        folder = tmp_path / name
        module = small_llama(seed, torch.float32)
        module.generation_config.eos_token_id = [1, 2]
        module.save_pretrained(folder)
        save_tokenizer(folder, words or [f"w{i}" for i in range(VOCAB)])
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return make


def test_a_local_folder_is_loaded_as_it_is(checkpoint):
    target, draft = checkpoint("target", 0), checkpoint("draft", 1, max_position_embeddings=128)
    pair = load_pair(composed("pair=vicuna", f"pair.target={target}", f"pair.draft={draft}", "runner.dtype=float64"))
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    expected = small_llama(0, torch.float64)(tokens).logits
    assert torch.equal(pair.target.module(tokens).logits, expected)
    assert pair.target.dtype == torch.float64
    assert pair.context_length == 128, "the shorter context of the two"
    assert pair.stop_ids == {1, 2}, "the model's own end-of-text tokens, several of them"
    assert pair.tokenizer("w3 w1").input_ids == [3, 1]


def test_fingerprint_follows_the_content(checkpoint):
    first, second = checkpoint("a", 0), checkpoint("b", 1)
    prints = []
    for target in (first, first, second):
        pair_module._cache.clear()
        prints.append(load_pair(composed("pair=vicuna", f"pair.target={target}", "pair.draft=null")).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def refused(error, match, *overrides):
    with pytest.raises(error, match=match) as caught:
        load_pair(composed(*overrides))
    assert "\n" not in str(caught.value)


def test_mismatches_are_one_clear_line(checkpoint, tmp_path):
    target = checkpoint("target")
    larger = tmp_path / "larger"
    shutil.copytree(target, larger)
    base = ("pair=vicuna", f"pair.target={target}")
    words = [f"w{i}" for i in range(VOCAB)]
    swapped = checkpoint("swapped", words=[words[1], words[0], *words[2:]])
    refused(PairError, "tokenizers differ: 'w", *base, f"pair.draft={swapped}")
    other_end = checkpoint("other_end")
    save_tokenizer(other_end, words, eos="w5")
    refused(PairError, "eos_token_id differs: target 1, draft 5", *base, f"pair.draft={other_end}")
    small = checkpoint("small")
    save_tokenizer(small, [f"w{i}" for i in range(VOCAB + 9)])
    refused(PairError, f"tokenizer has {VOCAB + 9} tokens", *base, f"pair.tokenizer={small}", "pair.draft=null")


def test_vocabularies_of_different_size(checkpoint, tmp_path):
    target, draft = checkpoint("target"), tmp_path / "draft"
    module = small_llama(1, torch.float32)
    module.resize_token_embeddings(VOCAB + 3)
    module.save_pretrained(draft)
    refused(
        PairError,
        f"vocabulary sizes differ: target {VOCAB}, draft {VOCAB + 3}",
        "pair=vicuna",
        f"pair.target={target}",
        f"pair.draft={draft}",
    )


def test_folders_that_cannot_be_loaded(checkpoint, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(PairError, "pair.target=.*empty: the folder does not hold a checkpoint", f"pair.target={empty}")
    refused(ConfigError, "no such folder, and not a Hub name", f"pair.target={tmp_path}/nowhere")
    pickled = checkpoint("pickled")
    state = small_llama(0, torch.float32).state_dict()
    (pickled / "model.safetensors").unlink()
    torch.save(state, pickled / "pytorch_model.bin")
    base = ("pair=vicuna", f"pair.target={pickled}", "pair.draft=null")
    refused(PairError, "does not hold a checkpoint", *base)
    assert load_pair(composed(*base, "pair.allow_pickle=true")).target.vocab_size == VOCAB
    torn = checkpoint("torn")
    weights = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(PairError, "does not hold a checkpoint", f"pair.target={torn}")


def test_recurrent_states_outside_of_the_cache_are_refused(tmp_path):
    from transformers import RwkvConfig, RwkvForCausalLM

    folder = tmp_path / "rwkv"
    RwkvForCausalLM(RwkvConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2)).save_pretrained(folder)
    save_tokenizer(folder, [f"w{i}" for i in range(VOCAB)])
    refused(PairError, "rwkv.*recurrent", "pair=vicuna", f"pair.target={folder}", "pair.draft=null")


@pytest.mark.parametrize(("name", "width"), short_only([("vicuna", 256), ("qwen3", 512), ("glm4", 4096)], "vicuna"))
def test_random_weights_of_the_papers_pairs(name, width):
    """The architecture of the checkpoint, cut down; nothing is downloaded."""
    if name == "glm4":
        overrides = ["pair.target_architecture.hidden_size=256", "pair.target_architecture.num_attention_heads=4"]
        overrides += ["pair.target_architecture.intermediate_size=512", "pair.draft_architecture.intermediate_size=512"]
    else:
        overrides = [f"pair.hidden_size={width}"]
    cfg = composed(f"pair={name}", "weights=random", "pair.num_layers=2", "pair.vocab_size=3000", *overrides)
    pair = load_pair(cfg)
    assert pair.target.module.config.model_type == cfg.pair.target_architecture["model_type"]
    assert pair.target.num_layers == 2
    assert pair.target.vocab_size == pair.draft.vocab_size == 3000
    rows, _ = run_all(make_engine(pair.target, pair.draft, gamma=2), [[5, 6, 7], [8], [9, 10]], 6)
    assert all(len(row.output_ids) == 6 for row in rows)


def synthetic(scale):
    return load_pair(
        composed(
            "pair=synthetic",
            "pair.hidden_size=128",
            "pair.num_layers=6",
            f"pair.synthetic.residual_scale={scale}",
        )
    )


@pytest.mark.nightly
def test_the_synthetic_dial():
    """At 0 everything is accepted; the larger the scale, the less; the same seed gives the same pair."""
    rates = []
    for scale in (0.0, 0.02, 0.1, 0.5):
        pair = synthetic(scale)
        prompts = [[7 * i + j for j in range(4 + i)] for i in range(8)]
        _, rounds = run_all(make_engine(pair.target, pair.draft, gamma=4), prompts, 25)
        drafted = sum(sum(r.num_drafted) for r in rounds)
        rates.append(sum(sum(r.num_accepted) for r in rounds) / drafted)
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.3
    first = synthetic(0.1).target.module.lm_head.weight
    pair_module._cache.clear()
    assert torch.equal(first, synthetic(0.1).target.module.lm_head.weight)


def test_the_synthetic_draft_shares_memory_with_its_target():
    pair = synthetic(0.1)
    ours, theirs = pair.draft.module.model, pair.target.module.model
    assert ours.embed_tokens.weight.data_ptr() == theirs.embed_tokens.weight.data_ptr()
    assert len(ours.layers) == specdec.config.schema.SyntheticConfig().draft_layers


def test_everything_that_a_point_reads_is_signed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    heads, corpus, trace = tmp_path / "heads", tmp_path / "corpus.txt", tmp_path / "trace.jsonl"
    heads.mkdir()
    for path in (heads / "weights", corpus, trace):
        path.write_text("1")
    asked = {
        "drafter.path": (["drafter=eagle", "drafter.path='~/heads'"], heads / "weights"),
        "drafter.corpus": (["drafter=trigram", f"drafter.corpus={corpus}"], corpus),
        "arrivals.path": (["arrivals=trace", f"arrivals.path={trace}"], trace),
    }
    for name, (overrides, file) in asked.items():
        cfg = composed(*overrides)
        before = input_hashes(cfg)
        file.write_text("2")
        changed = {key for key, value in input_hashes(cfg).items() if before[key] != value}
        assert changed == {name}
    assert "logger.path" not in input_hashes(composed("logger=csv", f"logger.path={corpus}"))


@pytest.mark.slow
def test_the_draft_has_a_fingerprint_of_its_own(checkpoint):
    """What was measured or sampled with one draft is not taken for another's."""
    target, other = checkpoint("target", 0), checkpoint("other", 1)
    pairs = [
        load_pair(composed("pair=vicuna", f"pair.target={target}", f"pair.draft={draft}")) for draft in (target, other)
    ]
    assert pairs[0].fingerprint == pairs[1].fingerprint
    assert pairs[0].draft_fingerprint != pairs[1].draft_fingerprint
    cfg = composed("pair=vicuna", f"pair.target={target}", "temperature=0.5", "verifier=rejection")
    assert reference_settings(cfg, pairs[0]) != reference_settings(cfg, pairs[1])
    greedy = composed("pair=vicuna", f"pair.target={target}")
    assert reference_settings(greedy, pairs[0]) == reference_settings(greedy, pairs[1])
    trial_rows = TrialRows([Prompt(0, 0, "c", [1, 2])], 64, frozenset(), None, None)
    tables = [profiler(greedy, pair, trial_rows) for pair in pairs]
    assert tables[0].settings() != tables[1].settings()
