"""Folders of heads that are broken, or hold what is not implemented: each is one clear line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from conftest import small_llama
from head_folders import config_of, published
from safetensors.torch import load_file, save, save_file

import specdec.config  # noqa: F401  (declares the built-in plug-ins)
from specdec.alignment.inplace import InplaceAlignment
from specdec.core.clock import Clock
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError
from specdec.heads.__main__ import main
from specdec.models.causal_lm import CausalLM
from specdec.registry import create


@pytest.fixture(scope="module")
def context() -> DrafterContext:
    target, clock = CausalLM(small_llama(0, torch.float32)), Clock()
    return DrafterContext(target, None, lambda model: InplaceAlignment(model, clock), clock)


def refusal(context: DrafterContext, kind: str, folder: Path) -> str:
    """The line after the setting and the folder."""
    with pytest.raises(ConfigError) as found:
        create("drafter", kind, context, path=str(folder))
    line = str(found.value)
    assert "\n" not in line
    assert line.startswith(f"drafter.path={folder}")
    return line.removeprefix(f"drafter.path={folder}").removeprefix(": ")


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        (
            "eagle3",
            {"num_hidden_layers": "one"},
            "num_hidden_layers in its config.json is 'one'",
        ),
        ("eagle3", {"head_dim": 0}, "head_dim in its config.json is 0, and it must be an integer of at least 1"),
        (
            "eagle3",
            {"rms_norm_eps": float("nan")},
            "rms_norm_eps in its config.json is nan, and it must be",
        ),
        (
            "eagle3",
            {"target_layer_ids": "2"},
            "target_layer_ids in its config.json is '2', and it must be a list",
        ),
        ("eagle3", {"rope_scaling": 2}, "rope_scaling in its config.json is 2, and it must be an object"),
        ("eagle3", {"model_type": "gemma4_text"}, "its layers are those of gemma4_text, and known are llama,"),
        ("eagle3", {"quantization_config": {"quant_method": "fp8"}}, "its weights are quantised (fp8)"),
        ("eagle3", {"partial_rotary_factor": 0.5}, "it rotates 0.5 of a head's numbers"),
        ("eagle3", {"rope_scaling": {"mrope_section": [1, 2, 1]}}, "its rotary positions are in sections (mrope)"),
        ("eagle3", {"rope_scaling": {"rope_type": "spiral"}}, "its rotary positions are of the type spiral"),
        (
            "eagle3",
            {"layer_types": ["sliding_attention"]},
            "its layers are of the kind sliding_attention",
        ),
        ("eagle3", {"layer_types": ["chunked"]}, "its layers are of the kind chunked, and known is full_attention or"),
        (
            "eagle",
            {"layer_types": ["sliding_attention"]},
            "its layers are of the kind sliding_attention",
        ),
        (
            "dflash",
            {"layer_types": ["sliding_attention"], "sliding_window": 4},
            "its layer_types are those of 1 layers",
        ),
        ("dflash", {"is_causal": "no"}, "is_causal in its config.json is 'no', and it must be true or false"),
        ("dflash", {"dflash_config": []}, "dflash_config in its config.json is [], and it must be an object"),
        (
            "dflash",
            {"dflash_config": {"mask_token_id": 61}},
            "its mask_token_id is 61, and its vocabulary has",
        ),
        ("dflash", {"block_size": 1}, "its block has 1 slots, and at least 2 are needed"),
        ("dflash", {"architectures": ["DFlash2DraftModel"]}, "a head of the kind 'dflash2', and known are"),
        (
            "dspark",
            {"markov_head_type": "long"},
            "its sequential head is of the type long, and known are vanilla",
        ),
        (
            "dspark",
            {"confidence_temperatures": [1.0, 0.0]},
            "confidence_temperatures in its config.json is [1.0, 0.0], and it must be a list of numbers above 0",
        ),
        (
            "dspark",
            {"confidence_temperatures": [1.0]},
            "it has 1 confidence_temperatures, and its block has 4 slots",
        ),
        ("dspark", {"logit_scale": 0.5}, "it scales or bounds its logits, which is known of dflash alone"),
    ],
)
def test_configs(context, tmp_path, kind, fields, line):
    folder = Path(published(kind, tmp_path))
    (folder / "config.json").write_text(json.dumps({**config_of(kind, 32, 61), **fields}))
    assert refusal(context, kind, folder).startswith(line)


def header(content: object) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


def test_files(context, tmp_path):
    """A damaged config is no better than none; nulls say nothing, and a byte order mark is no damage."""
    folder = Path(published("eagle3", tmp_path))
    config, file = folder / "config.json", folder / "model.safetensors"
    fine, weights = config.read_bytes(), file.read_bytes()
    config.write_bytes(b"\xef\xbb\xbf" + fine.replace(b"{", b'{"head_dim": null, "sliding_window": null, ', 1))
    create("drafter", "eagle3", context, path=str(folder))
    for content in (b"", b"{", fine.decode().encode("utf-16"), b"\xff"):
        config.write_bytes(content)
        assert refusal(context, "eagle3", folder).startswith("config.json cannot be read: ")
    config.write_bytes(fine)
    damaged = [b"", weights[:4], weights[:8], weights[:200], b"\0" * 90, header([1]), header({"a": {"shape": "x"}})]
    for content in damaged:
        file.write_bytes(content)
        assert refusal(context, "eagle3", folder) == "model.safetensors cannot be loaded: its header is damaged"
    for content in (weights[:-1], weights + b"x"):
        file.write_bytes(content)
        assert refusal(context, "eagle3", folder).startswith("model.safetensors cannot be loaded: it should have ")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 5\n")
    assert "it is a pointer of Git LFS" in refusal(context, "eagle3", folder)
    file.unlink()
    assert refusal(context, "eagle3", folder).startswith("it has no weights in *.safetensors")
    assert main([str(folder)]) == 1


def test_tensors(context, tmp_path, capsys):
    """Of other kinds, with NaN, and maps between vocabularies that are ids, out of range, repeated or contradict."""
    folder = Path(published("eagle3", tmp_path))
    file = folder / "model.safetensors"
    weights = load_file(file)
    ids, fc = torch.arange(30) + weights["d2t"], weights["fc.weight"]
    maps = "d2t does not name 30 different tokens of the target's 61"
    for name, tensor, line in (
        (
            "fc.weight",
            fc.int(),
            "its tensor fc.weight holds i32, and floating-point numbers are needed",
        ),
        ("d2t", weights["d2t"].float(), "its tensor d2t holds f32, and integers are needed"),
        ("norm.weight", torch.full((32,), torch.nan), "its tensor norm.weight holds NaN or infinity"),
        ("d2t", weights["d2t"][:-1].clone(), "its tensor d2t is 29, and its config promises 30"),
        *(("d2t", other, maps) for other in (ids, weights["d2t"] - 5, 4 - torch.arange(30))),
        ("t2d", ~weights["t2d"], "d2t and t2d name different tokens"),
    ):
        save_file({**weights, name: tensor}, file)
        assert refusal(context, "eagle3", folder) == line
    file.write_bytes(save({**weights, "fc.weight": fc.int()}))
    assert main([str(folder), "--target", str(target_folder(tmp_path))]) == 1
    assert "fc.weight holds i32" in capsys.readouterr().out


def target_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 32, "vocab_size": 61, "num_hidden_layers": 3}))
    return folder


def test_hydra_is_refused_before_its_pickle(context, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hydra_num_heads": 4, "hydra_num_layers": 1}))
    (tmp_path / "hydra_lm_head.pt").write_bytes(b"")
    assert refusal(context, "medusa", tmp_path).startswith("a head of the kind 'hydra', and known are")
