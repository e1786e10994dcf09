"""Exports and caches can be read by others than their owner: `safetensors` keeps the permissions of temporary files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from conftest import small_llama

from specdec.core.files import write_json
from specdec.core.tensor_files import write_tensors
from specdec.drafters.trained import save_heads
from specdec.models.causal_lm import CausalLM
from specdec.training.model import save_model

PACKAGE = Path(__file__).parent.parent / "specdec"


def modes(folder: Path) -> set[str]:
    return {stat.filemode(path.stat().st_mode) for path in folder.iterdir()}


def save_one_head(folder: Path) -> None:
    save_heads(folder, "medusa", {}, torch.nn.Linear(2, 2), CausalLM(small_llama(0, torch.float32, layers=1)))


WRITERS = {
    "document": lambda folder: write_json(folder / "a.json", {}),
    "tensors": lambda folder: write_tensors({"a": torch.zeros(2)}, folder / "a.safetensors"),
    "model": lambda folder: save_model(small_llama(0, torch.float32, layers=1), folder),
    "heads": save_one_head,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_can_be_read_by_others(writer, tmp_path):
    WRITERS[writer](tmp_path)
    assert modes(tmp_path) == {"-rw-r--r--"}


def test_no_other_module_writes_safetensors():
    names = {path.name for path in PACKAGE.rglob("*.py") if "import save_file" in path.read_text()}
    names |= {path.name for path in PACKAGE.rglob("*.py") if "load_file, save_file" in path.read_text()}
    assert names == {"tensor_files.py"}
    writers = {path for path in PACKAGE.rglob("*.py") if "module.save_pretrained(" in path.read_text()}
    assert len(writers) >= 2
    assert all("let_others_read(" in path.read_text() for path in writers)
