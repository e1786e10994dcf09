"""Published heads: what a folder is and what fits; lossless in every batch; refusals that name both sides."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import VOCAB, greedy_alone, small_llama
from harness import ALIGNMENTS, make_engine, run_all
from head_folders import config_of, published, shapes_of, write
from safetensors.torch import load_file
from torch.nn.functional import silu

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.core.clock import Clock
from specdec.core.sampling_params import SamplingParams
from specdec.core.sequence import Sequence, SequencePool
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError
from specdec.heads.__main__ import main
from specdec.heads.export import save_head
from specdec.heads.folder import open_folder
from specdec.heads.spec import recognised
from specdec.heads.weights import load_head, untrained_head
from specdec.models.causal_lm import CausalLM
from specdec.registry import create

KINDS = {
    "eagle": "eagle",
    "eagle3": "eagle3",
    "medusa": "medusa",
    "dflash": "dflash",
    "dspark": "dspark",
    "mimo": "mtp",
    "specblock": "specblock",
}
"""The drafter of each layout."""
UNTRAINED = ("eagle3", "peagle", "specblock", "dflash", "dspark", "mtp")
NEW = 14


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64))


@pytest.fixture(scope="module")
def truth(model, prompts) -> list[list[int]]:
    return [greedy_alone(model, prompt, NEW, frozenset()) for prompt in prompts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return {layout: published(layout, tmp_path_factory.mktemp(layout)) for layout in KINDS}


def context_for(model: CausalLM, alignment: str = "inplace", **tools) -> DrafterContext:
    clock = Clock()
    return DrafterContext(model, None, lambda other: ALIGNMENTS[alignment](other, clock), clock, **tools)


def settings_of(name: str, folders: dict[str, str]) -> tuple[str, dict]:
    if name == "specblock tree":
        return "specblock", {"path": folders["specblock"], "nodes": 12}
    return (KINDS[name], {"path": folders[name]}) if name in folders else (name, {"untrained": True})


# --- lossless ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch", "alignment"),
    [
        *(("eagle", 1, "eqspec"), ("eagle", 8, "inplace"), ("eagle3", 4, "masked"), ("eagle3", 8, "rollback")),
        *(("medusa", 4, "expansion"), ("dflash", 1, "masked"), ("dflash", 8, "eqspec"), ("dspark", 4, "inplace")),
        *(("specblock", 4, "masked"), ("specblock tree", 8, "inplace"), ("specblock tree", 1, "eqspec")),
        *(("mimo", 4, "eqspec"), ("peagle", 8, "inplace"), ("mtp", 8, "expansion"), ("eagle3", 1, "inplace")),
    ],
)
def test_outputs_are_the_targets_own_at_every_batch_size(model, prompts, truth, folders, name, batch, alignment):
    drafter, settings = settings_of(name, folders)
    drafter = create("drafter", drafter, context_for(model, alignment), **settings)
    scheduler = "continuous" if batch == 4 else "static"
    engine = make_engine(
        model, drafter=drafter, alignment=ALIGNMENTS[alignment], scheduler=scheduler, batch=batch, gamma=3
    )
    budgets = [NEW - i % 4 for i in range(len(prompts))]
    rows, rounds = run_all(engine, prompts, budgets)
    for row, expected in zip(rows, truth, strict=True):
        assert row.output_ids == expected[: row.max_new_tokens]
    assert sum(sum(outcome.num_drafted) for outcome in rounds) > 100


@pytest.mark.parametrize("name", ["eagle3", "peagle", "specblock", "dflash", "dspark", "medusa"])
def test_sampled_rows_keep_the_tokens_of_plain_sampling(model, prompts, folders, name):
    """Chains of every law, beside greedy rows; and rejection takes their laws as they are."""
    outputs = {}
    for drafter, verifier in ((None, "naive"), (name, "naive"), (name, "rejection")):
        made = None
        if drafter is not None:
            kind, settings = settings_of(drafter, folders)
            made = create("drafter", kind, context_for(model), **settings)
        engine = make_engine(
            model,
            drafter=made,
            verifier=create("verifier", verifier),
            alignment=ALIGNMENTS["inplace"],
            batch=4,
            gamma=3,
        )
        rows = [
            Sequence(i, list(prompt), 8, sampling=SamplingParams(temperature=0.9 if i % 2 else 0.0, seed=i))
            for i, prompt in enumerate(prompts[:6])
        ]
        pool = SequencePool(rows)
        while not pool.done:
            engine.step(pool)
        outputs[drafter, verifier] = [row.output_ids for row in rows]
    assert outputs[name, "naive"] == outputs[None, "naive"]
    assert outputs[name, "rejection"][::2] == outputs[None, "naive"][::2], "greedy rows"


def test_a_long_prompt_is_read_in_parts(model, folders, monkeypatch):
    """With the same drafts as at once, beside short rows."""
    monkeypatch.setattr("specdec.heads.steps.MAX_ENTRIES", 4)
    prompts = [[(7 * i) % VOCAB for i in range(count)] for count in (23, 2, 9)]
    drafts = []
    for size in (4, 500):
        monkeypatch.setattr("specdec.heads.steps.MAX_ENTRIES", size)
        engine = make_engine(
            model, drafter=create("drafter", "eagle3", context_for(model), path=folders["eagle3"]), batch=3, gamma=3
        )
        rows, rounds = run_all(engine, prompts, 6)
        drafts.append(([row.output_ids for row in rows], [outcome.num_accepted for outcome in rounds]))
    assert drafts[0] == drafts[1]


def bigram_target() -> CausalLM:
    """Its next token depends on the last one alone: attention and MLP add nothing."""
    module = small_llama(3, torch.float32, layers=2)
    with torch.no_grad():
        for part in module.model.layers:
            part.self_attn.o_proj.weight.zero_()
            part.mlp.down_proj.weight.zero_()
    return CausalLM(module)


def oracle(layout: str, target: CausalLM, folder: Path) -> str:
    """A head that knows the target: its layers add nothing, and its inputs are the token embeddings alone."""
    size, config = 32, config_of(layout, 32, VOCAB)
    embeds_VD, head_VD = target.module.model.embed_tokens.weight, target.module.lm_head.weight
    shapes = shapes_of(layout, size, VOCAB)
    if layout == "dspark":
        config |= {"markov_rank": size, "dflash_config": {"target_layer_ids": [0, 1, 0], "mask_token_id": 7}}
        shapes |= {f"markov_head.markov_w{i}.weight": (VOCAB, size) for i in (1, 2)}
        shapes["confidence_head.proj.weight"] = (1, 2 * size)
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    if layout == "dspark":  # the block says nothing, and the bias is the target's law
        tensors["markov_head.markov_w1.weight"] = embeds_VD / embeds_VD.square().mean(-1, keepdim=True).sqrt()
        tensors["markov_head.markov_w2.weight"] = head_VD
    else:
        name, first = ("fc.weight", True) if layout == "eagle" else ("model.mtp_layers.0.input_proj.weight", False)
        eye, nothing = torch.eye(size), torch.zeros(size, size)
        tensors[name] = torch.cat([eye, nothing] if first else [nothing, eye], dim=1)
        tensors |= {key: torch.ones_like(value) for key, value in tensors.items() if "norm" in key}
    return write(folder, config, {key: value.detach().clone() for key, value in tensors.items()})


@pytest.mark.parametrize("layout", ["eagle", "dspark", "mimo"])
def test_a_head_that_knows_the_target_is_accepted_whole(layout, prompts, tmp_path):
    target = bigram_target()
    drafter = create("drafter", KINDS[layout], context_for(target), path=oracle(layout, target, tmp_path))
    rows, rounds = run_all(make_engine(target, drafter=drafter, batch=4, gamma=3), prompts, 13)
    drafted, accepted = (sum(sum(getattr(r, name)) for r in rounds) for name in ("num_drafted", "num_accepted"))
    assert accepted == drafted > 60
    assert [row.output_ids for row in rows] == [greedy_alone(target, prompt, 13, frozenset()) for prompt in prompts]


# --- the law of a draft -------------------------------------------------------------------------------------------


def test_medusa_drafts_by_its_blocks(model, folders):
    drafter = create("drafter", "medusa", context_for(model), path=folders["medusa"])
    tensors = load_file(Path(folders["medusa"]) / "model.safetensors")
    hidden_BD = torch.randn(5, 32, dtype=torch.float64)
    for g in range(3):
        block, bias, head = (
            tensors[f"{g}.{name}"].double() for name in ("0.linear.weight", "0.linear.bias", "1.weight")
        )
        expected = (hidden_BD + silu(hidden_BD @ block.T + bias)) @ head.T
        torch.testing.assert_close(drafter._heads(hidden_BD)[:, g], expected)


def test_a_reduced_vocabulary_has_the_law_of_its_own_softmax(model, folders):
    """Probabilities over the tokens that can be drafted, and zero elsewhere; every draw is one of them."""
    drafter = create("drafter", "eagle3", context_for(model), path=folders["eagle3"])
    states: list[torch.Tensor] = []
    plain = drafter.head.logits
    drafter.head.logits = lambda states_BND: [states.append(states_BND), plain(states_BND)][1]
    rows = [Sequence(i, [3, 1, 4, 1, 5], 9, sampling=SamplingParams(temperature=0.7, seed=i)) for i in range(40)]
    drafter.admit(rows)
    hidden_BTD = torch.randn(1, 4, 3 * 32, dtype=torch.float64).expand(40, -1, -1)
    drafter.observe_hidden(rows, hidden_BTD, [[0, 1, 2, 3]] * 40)
    draft = drafter.propose(rows, [2] * 40)
    tensors = load_file(Path(folders["eagle3"]) / "model.safetensors")
    ids = torch.arange(VOCAB // 2) + tensors["d2t"]
    state_D = states[0][0, 0]
    normed_D = state_D * (state_D.square().mean() + 1e-5).rsqrt() * tensors["norm.weight"].double()
    expected_V = torch.zeros(VOCAB, dtype=torch.float64)
    expected_V[ids] = ((tensors["lm_head.weight"].double() @ normed_D) / 0.7).softmax(-1)
    torch.testing.assert_close(draft.probs_BGV[0, 0], expected_V, atol=1e-6, rtol=1e-5)
    assert len({tokens[0] for tokens in draft.ids}) > 3
    assert {token for tokens in draft.ids for token in tokens} <= set(ids.tolist())


@pytest.mark.parametrize("name", ["eagle", "medusa", *UNTRAINED])
def test_a_saved_head_drafts_the_same_when_it_is_loaded_again(model, folders, tmp_path, name):
    context = context_for(model)
    if name in ("eagle", "medusa"):
        head = load_head(name, folders[name], context)
    else:
        settings = {"mask_token_id": 3} if name in ("peagle", "dflash", "dspark") else {}
        head = untrained_head(name, context, **settings)
    verifier = {"name_or_path": "someone/llama", "architectures": ["LlamaForCausalLM"]}
    save_head(tmp_path, head.spec, head.tensors, num_drafted=3, verifier=verifier, dtype=torch.float32)
    again = load_head(name, str(tmp_path), context)
    assert again.tensors.keys() == head.tensors.keys()
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in head.tensors.items())
    assert again.hidden_layers == head.hidden_layers
    assert again.spec.mask_token_id == head.spec.mask_token_id
    assert main([str(tmp_path)]) == 0


# --- what a folder is, and refusals -----------------------------------------------------------------------------------


def test_kinds_are_read_from_the_folder(folders):
    found = {layout: recognised(open_folder(folder)) for layout, folder in folders.items()}
    assert {layout: spec.kind for layout, spec in found.items()} == KINDS
    assert found["eagle3"].hidden_layers(36) == (2, 18, 33)
    assert found["dflash"].hidden_layers(36) == (2, 1, 3), "these number the outputs of layers"
    assert found["dflash"].hidden_layers(3) == (2, 1, -1), "the last output, after the norm"


def test_the_command_describes_a_folder_in_a_second(folders, tmp_path, capsys):
    target = tmp_path / "target"
    target.mkdir()
    sizes = {"hidden_size": 32, "vocab_size": VOCAB, "num_hidden_layers": 3}
    (target / "config.json").write_text(json.dumps(sizes))
    start = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "specdec.heads", folders["eagle3"], "--target", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr[-500:]
    assert "torch" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert time.perf_counter() - start < 20, "a second on an idle machine"
    assert "30 of 61 tokens" in done.stdout
    assert done.stdout.splitlines()[-1] == f"python run.py drafter=eagle3 drafter.path={folders['eagle3']}"
    (target / "config.json").write_text(json.dumps({**sizes, "hidden_size": 64, "num_hidden_layers": 2}))
    assert main([folders["eagle3"], "--target", str(target)]) == 1
    printed = capsys.readouterr().out
    assert f"it reads hidden states of 32 numbers, and those of {target} have 64" in printed


def changed(folder: str, to: Path, config: dict | None = None, **tensors) -> str:
    """A copy with another config, and with tensors exchanged; None drops one."""
    source = Path(folder)
    own = {**json.loads((source / "config.json").read_text()), **(config or {})}
    weights = {**load_file(source / "model.safetensors"), **{k.replace("__", "."): v for k, v in tensors.items()}}
    return write(to, own, {name: value for name, value in weights.items() if value is not None})


@pytest.mark.parametrize(
    ("layout", "config", "tensors", "message"),
    [
        ("eagle", {"vocab_size": 50}, {}, "its vocabulary has 50 tokens, and that of a LlamaForCausalLM has 61"),
        ("eagle3", {"target_hidden_size": 48}, {}, "it reads hidden states of 48 numbers, and those of .* have 32"),
        ("eagle3", {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 9]}}, {}, "reads layer 9, .* 3 layers"),
        (
            "eagle3",
            {},
            {"midlayer__mlp__up_proj__weight": None},
            r"lacks the tensor layers.0.mlp.up_proj.weight 24 x 32",
        ),
        ("eagle3", {}, {"d2t": torch.full((30,), 60)}, "d2t does not name 30 different tokens of the target's 61"),
        ("eagle", {}, {"gate__weight": torch.zeros(2, 2)}, "has the tensor gate.weight, which no eagle head has"),
        ("dflash", {"layer_types": ["sliding_attention"] * 2}, {}, "layers are of the kind sliding_attention"),
        ("dflash", {"dflash_config": {"target_layer_ids": [0, 1, 2]}}, {}, "its config.json names no mask_token_id"),
        (
            "mimo",
            {},
            {"model__mtp_layers__0__input_proj__weight": torch.zeros(32, 32)},
            "is 32 x 32, .* promises 32 x 64",
        ),
    ],
)
def test_heads_that_do_not_fit_are_one_line(model, folders, tmp_path, layout, config, tensors, message):
    path = changed(folders[layout], tmp_path, config, **tensors)
    with pytest.raises(ConfigError, match=message) as found:
        create("drafter", KINDS[layout], context_for(model), path=path)
    assert str(found.value).count("\n") == 0
    assert str(found.value).startswith(f"drafter.path={path}")


def test_of_several_mtp_layers_the_first_is_used(model, folders, tmp_path):
    source = load_file(Path(folders["mimo"]) / "model.safetensors")
    second = {
        name.replace("mtp_layers.0", "mtp_layers.1"): 2 * value for name, value in source.items() if "mtp" in name
    }
    path = changed(folders["mimo"], tmp_path, {"num_nextn_predict_layers": 2})
    write(tmp_path, json.loads((tmp_path / "config.json").read_text()), {**source, **second})
    found, expected = (load_head("mtp", folder, context_for(model)) for folder in (path, folders["mimo"]))
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_another_kind_another_tokenizer_and_a_target_without_a_head(model, folders, tmp_path):
    with pytest.raises(ConfigError, match="holds a head of the kind eagle3: set drafter=eagle3"):
        create("drafter", "eagle", context_for(model), path=folders["eagle3"])
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ConfigError, match=r"no draft head that is known here.*GPT2LMHeadModel"):
        create("drafter", "eagle3", context_for(model), path=str(tmp_path))
    path = changed(folders["eagle"], tmp_path / "other")
    (Path(path) / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 7}}}))

    class Tokenizer:
        def get_vocab(self):
            return {"a": 0, "b": 1}

    with pytest.raises(ConfigError, match="its tokenizer gives 'b' the id 7, and the target's gives it 1"):
        create("drafter", "eagle", context_for(model, tokenizer=Tokenizer()), path=path)


def test_pickles_are_read_where_they_are_allowed(model, folders, tmp_path):
    """And only their tensors: nothing in them is run."""
    source = Path(folders["medusa"])
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    torch.save(load_file(source / "model.safetensors"), tmp_path / "medusa_lm_head.pt")
    with pytest.raises(ConfigError, match=r"weights are a pickle \(medusa_lm_head.pt\), .* set pair.allow_pickle=true"):
        create("drafter", "medusa", context_for(model), path=str(tmp_path))
    drafter = create("drafter", "medusa", context_for(model, allow_pickle=True), path=str(tmp_path))
    assert drafter.max_length == 3, "its config says 5, and there are 3"
    torch.save({"0.0.linear.weight": print}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(ConfigError, match=r"medusa_lm_head.pt cannot be loaded"):
        create("drafter", "medusa", context_for(model, allow_pickle=True), path=str(tmp_path))


def test_a_damaged_file_is_one_line(model, folders, tmp_path):
    path = changed(folders["eagle3"], tmp_path)
    file = Path(path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"model.safetensors cannot be loaded: it should have \d+ bytes and has \d+"):
        create("drafter", "eagle3", context_for(model), path=path)


@pytest.mark.parametrize("kind", UNTRAINED)
def test_without_a_path_random_weights_must_be_asked_for(model, kind):
    with pytest.raises(ConfigError, match=rf"drafter={kind} without drafter.path .* drafter.untrained=true"):
        create("drafter", kind, context_for(model), path=None, untrained=False)
