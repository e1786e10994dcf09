"""Folders of heads: what is read from them, and refusals that name both sides."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import VOCAB, small_llama
from harness import context_for
from head_folders import KINDS, UNTRAINED, write
from safetensors.torch import load_file

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.errors import ConfigError
from specdec.heads.__main__ import main
from specdec.heads.folder import open_folder
from specdec.heads.spec import recognised
from specdec.heads.weights import load_head
from specdec.models.causal_lm import CausalLM
from specdec.registry import create


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(small_llama(0, torch.float64))


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
