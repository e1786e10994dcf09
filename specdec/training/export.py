"""The shipped folder: two models, tokenizer, provenance, model card; the held-out prompts lie beside it."""

from __future__ import annotations

import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from specdec.training import TrainingError
from specdec.training.card import model_card
from specdec.training.config import TrainConfig
from specdec.training.stages import write_json

# Stage folder -> place in the export.
PARTS = {"target/model": "target", "draft/model": "draft", "tokenizer": "tokenizer"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def provenance(cfg: TrainConfig, records: dict[str, Any]) -> dict[str, Any]:
    """Where the pair comes from: data, versions, settings, and each stage's record with its figures."""
    from omegaconf import OmegaConf

    packages = ("torch", "transformers", "tokenizers", "lightning", "numpy")
    return {
        "pair": "tiny",
        "data": {
            "source": "Python standard library" if cfg.corpus.root is None else cfg.corpus.root,
            "license": "PSF-2.0",
            "python": platform.python_version(),
            "sha256": records["tokenizer"]["corpus_sha256"],
            "heldout_percent": cfg.corpus.heldout_percent,
            "train": records["tokenizer"]["train"],
            "heldout": records["tokenizer"]["heldout"],
        },
        "versions": {name: version(name) for name in packages},
        "machine": {"processor": platform.machine(), "system": platform.system()},
        "seed": cfg.seed,
        "stages": {name: records[name] for name in ("target", "greedy", "warm", "draft")},
        "acceptance": records["acceptance"],
        "step_times": records["step_times"],
        "config": OmegaConf.to_container(OmegaConf.structured(cfg)),
    }


def export_pair(cfg: TrainConfig, folder: Path, records: dict[str, Any], prompts_path: Path) -> Path:
    """Assemble beside the destination, check the size, then replace the destination. Returns it."""
    destination = Path(cfg.export_dir) if cfg.export_dir else folder / "export" / "tiny"
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".export-") as scratch:
        staged = Path(scratch) / destination.name
        for source, name in PARTS.items():
            _copy_part(folder / source, staged / name)
        record = provenance(cfg, records)
        num_bytes = sum(path.stat().st_size for path in staged.rglob("*.safetensors"))
        if num_bytes > cfg.max_export_bytes:
            raise TrainingError(f"max_export_bytes={cfg.max_export_bytes}, but the safetensors have {num_bytes}")
        record["safetensors_bytes"] = num_bytes
        write_json(staged / "provenance.json", record)
        (staged / "README.md").write_text(model_card(record))
        shutil.rmtree(destination, ignore_errors=True)
        staged.rename(destination)
    shutil.copyfile(prompts_path, destination.parent / "heldout.jsonl")
    return destination


def _copy_part(source: Path, destination: Path) -> None:
    """A model folder whole; of the tokenizer's stage folder its own files only."""
    destination.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and (source.name == "model" or path.name in TOKENIZER_FILES):
            shutil.copyfile(path, destination / path.name)
