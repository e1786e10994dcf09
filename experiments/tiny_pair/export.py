"""The folder that ships: two models, their tokenizer, model card and provenance.json, with the prompts beside it."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from typing import Any

from specdec.training import TrainingError
from specdec.training.card import model_card
from specdec.training.config import TrainConfig
from specdec.training.export import code_record, replace_folder, settings_record
from specdec.training.stages import Record

_APART = ("tokenizer", "heldout", "acceptance", "step_times")  # records with a place of their own, or none
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
CARD = Path(__file__).with_name("card.md.jinja")


def export_pair(cfg: TrainConfig, folder: Path, target: Path, records: dict[str, Any]) -> Path:
    """Write the pair's folder, and heldout.jsonl beside it; returns the pair's folder."""
    models = {"target": target, "draft": folder / "draft/model"}
    record = provenance(cfg, records, models)
    parts = {**models, "tokenizer": folder / "tokenizer"}

    def write(staged: Path) -> None:
        for name, source in parts.items():
            _copy(source, staged / name)
        num_bytes = sum(path.stat().st_size for path in staged.rglob("*.safetensors"))
        if num_bytes > cfg.max_export_bytes:
            raise TrainingError(f"max_export_bytes={cfg.max_export_bytes}, but the safetensors have {num_bytes}")
        record["safetensors_bytes"] = num_bytes
        (staged / "README.md").write_text(model_card(record, CARD))

    destination = replace_folder(cfg, write, record, "tiny")
    shutil.copyfile(folder / "heldout/heldout.jsonl", destination.parent / "heldout.jsonl")
    return destination


def provenance(cfg: TrainConfig, records: dict[str, Any], models: dict[str, Path]) -> Record:
    """Data, code, settings, sizes of the models, and the record of every stage."""
    tokenizer = records["tokenizer"]
    return {
        "pair": "tiny",
        "data": {
            "source": "Python standard library" if cfg.corpus.root is None else cfg.corpus.root,
            "license": "PSF-2.0",
            "python": platform.python_version(),
            "sha256": tokenizer["corpus_sha256"],
            "heldout_percent": cfg.corpus.heldout_percent,
            "train": tokenizer["train"],
            "heldout": tokenizer["heldout"],
        },
        **code_record(),
        "seed": cfg.seed,
        "stages": {name: record for name, record in records.items() if name not in _APART},
        "acceptance": records["acceptance"],
        "step_times": records["step_times"],
        "models": {role: _sizes(path) for role, path in models.items()},
        "config": {**settings_record(cfg), "start": cfg.start},
    }


def _sizes(model: Path) -> dict[str, int]:
    """From config.json: a target may come from `start`, and a draft takes its widths, whatever the settings say."""
    config = json.loads((model / "config.json").read_text())
    return {name: config[name] for name in _SIZES}


def _copy(source: Path, destination: Path) -> None:
    """Copy a model's folder whole, and from the tokenizer's stage the tokenizer's own files."""
    destination.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and (source.name == "model" or path.name in TOKENIZER_FILES):
            shutil.copyfile(path, destination / path.name)
