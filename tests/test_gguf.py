"""GGUF files as targets and drafts: what is read from them, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import short_only
from conftest import last_document
from gguf_files import BOS, EOS, gguf, gguf_llama, tensors, write_gguf
from test_pair import composed

from specdec.core.files import read_lines
from specdec.errors import ConfigError, PairError, SpecdecError
from specdec.models import gguf as gguf_module
from specdec.models import pair as pair_module
from specdec.models.fetch import convert
from specdec.models.gguf import read_header
from specdec.models.pair import load_pair
from specdec.run.memory_check import num_weights

IDS = torch.tensor([[BOS, 7, 30, 30, 90, EOS, 12]])


@pytest.fixture(autouse=True)
def _fresh_cache():
    pair_module._cache.clear()


def config_of(path, *overrides):
    return composed("pair=vicuna", f"pair.target={path}", "pair.draft=null", "drafter=none", *overrides)


def test_weights_tokenizer_and_template_come_from_the_file(tmp_path):
    module = gguf_llama()
    config = config_of(write_gguf(tmp_path / "small.gguf", module))
    pair = load_pair(config)
    assert torch.equal(pair.target.module(IDS).logits, module(IDS).logits)
    assert pair.target.module.config.rope_parameters["rope_theta"] == module.config.rope_parameters["rope_theta"]
    assert (pair.tokenizer.bos_token_id, pair.tokenizer.eos_token_id, pair.tokenizer.pad_token_id) == (BOS, EOS, EOS)
    assert pair.stop_ids == {EOS}
    assert pair.tokenizer.decode(pair.tokenizer("cab!").input_ids) == "cab!"
    chat = pair.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chat == "<|im_start|>user\na<|im_end|>\n"
    assert pair.tokenizer(chat, add_special_tokens=False).input_ids[0] == BOS
    assert num_weights("target", config) == sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("kind", short_only(["Q4_1", "Q8_0", "F16"], "Q4_1"))
def test_quantised_matrices_are_dequantised(tmp_path, kind):
    module = gguf_llama()
    pair = load_pair(config_of(write_gguf(tmp_path / "small.gguf", module, kind)))
    for name, weights in tensors(pair.target.module).items():
        original = tensors(module)[name]
        quantised = gguf.GGMLQuantizationType[kind if original.ndim == 2 else "F32"]
        stored = gguf.quants.dequantize(gguf.quants.quantize(original, quantised), quantised)
        assert np.array_equal(weights, stored), name


@pytest.mark.slow
def test_a_target_and_a_draft_of_files_decode_exactly(run, tmp_path):
    target = write_gguf(tmp_path / "big.gguf", gguf_llama(0), "Q4_1")
    draft = write_gguf(tmp_path / "small.gguf", gguf_llama(0), "Q8_0")
    prompts = tmp_path / "prompts.jsonl"
    texts = ["a", "cabba", "b a b"]
    lines = [json.dumps({"question_id": n, "category": "x", "turns": [text]}) for n, text in enumerate(texts)]
    prompts.write_text("\n".join(lines))
    code, out, err = run(
        *("pair=vicuna", f"pair.target={target}", f"pair.draft={draft}", "data=jsonl", f"data.path={prompts}"),
        *("max_new_tokens=12", "batch=2", "baseline=false"),
    )
    assert code == 0, err
    summary = last_document(out)
    assert (summary["pair"], summary["num_exact"]) == ("big+small", 3)
    assert summary["num_accepted"] > 0
    assert len(list(read_lines(Path(summary["path"]) / "samples.jsonl"))) == 3


@pytest.mark.slow
def test_a_converted_folder_is_the_same_model(tmp_path):
    path = write_gguf(tmp_path / "small.gguf", gguf_llama(), "Q4_1")
    from_file = load_pair(config_of(path))
    convert(path, tmp_path / "folder", "float32")
    from_folder = load_pair(config_of(tmp_path / "folder"))
    assert torch.equal(from_file.target.module(IDS).logits, from_folder.target.module(IDS).logits)
    assert from_file.stop_ids == from_folder.stop_ids
    text = "<|im_start|>user\ncab<|im_end|>\n"
    assert from_file.tokenizer(text).input_ids == from_folder.tokenizer(text).input_ids
    assert from_file.tokenizer.chat_template == from_folder.tokenizer.chat_template
    assert from_folder.tokenizer.pad_token_id == EOS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small.gguf", "SMALL.GGUF"])
def test_another_content_is_another_pair(tmp_path, name):
    path = tmp_path / name
    prints = [load_pair(config_of(write_gguf(path, gguf_llama(seed)))).fingerprint for seed in (0, 1)]
    assert prints[0] != prints[1]


def refused(kind, match, path, *overrides):
    with pytest.raises(kind, match=match) as caught:
        load_pair(config_of(path, *overrides))
    assert isinstance(caught.value, SpecdecError)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_is_no_whole_file_is_refused(tmp_path):
    refused(ConfigError, "absent.gguf: no such file", tmp_path / "absent.gguf")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04" * 100)
    refused(PairError, "cannot be read: it does not begin as a GGUF file does", other)
    whole = write_gguf(tmp_path / "whole.gguf", gguf_llama()).read_bytes()
    for size in (10, 200, 5000, len(whole) // 2, len(whole) - 40):
        torn = tmp_path / "torn.gguf"
        torn.write_bytes(whole[:size])
        refused(PairError, "cannot be read: it is truncated", torn)
    part = tmp_path / "model-00001-of-00002.gguf"
    part.write_bytes(whole)
    refused(PairError, "one of several files of a model", part)


def test_what_the_loader_would_leave_out_is_refused(tmp_path):
    scaled = write_gguf(tmp_path / "scaled.gguf", gguf_llama(), table=True)
    refused(PairError, r"scaled by a table \(rope_freqs.weight\)", scaled)
    assert "rope_freqs.weight" in read_header(scaled).shapes


def test_unknown_architectures_are_refused_with_the_reason(tmp_path):
    path = write_gguf(tmp_path / "other.gguf", gguf_llama(), architecture="rwkv7")
    refused(PairError, "other.gguf: the file does not hold a checkpoint .* rwkv7 is not supported", path)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "small.gguf", gguf_llama())
    monkeypatch.setattr(gguf_module, "find_spec", lambda name: None)
    refused(ConfigError, r"needs gguf and accelerate: pip install 'specdec\[gguf\]'", path)


@pytest.mark.parametrize("field", ["count", "alignment"])
def test_a_header_that_makes_no_sense_is_refused_in_one_line(tmp_path, field):
    """Numbers of a damaged file: an array longer than any file, an alignment of zero bytes."""
    key = "tokenizer.ggml.token_type" if field == "count" else "general.alignment"
    path = tmp_path / "damaged.gguf"
    name = struct.pack("<Q", len(key)) + key.encode()
    value = struct.pack("<IIQ", 9, 4, 2**62) if field == "count" else struct.pack("<II", 4, 0)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1 + (field == "count")) + name + value + bytes(64))
    refused(PairError, "truncated within its header" if field == "count" else "its alignment is 0", path)
