"""Folders for others to load: a model with its tokenizer, or what was trained beside a target.

Each has a model card and provenance.json (data, versions, revision, settings, figures); each is assembled beside its
destination and then renamed.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.core.files import write_json
from specdec.run.provenance import git_revision
from specdec.training.card import model_card
from specdec.training.config import TrainConfig
from specdec.training.corpus_config import PartConfig
from specdec.training.heads import write_heads
from specdec.training.model import save_model
from specdec.training.resolve import output_folder
from specdec.training.stages import Record

if TYPE_CHECKING:
    from specdec.models.causal_lm import CausalLM
    from specdec.training.sources import Sources

PACKAGES = ("torch", "transformers", "tokenizers", "lightning", "numpy")


def provenance_of(
    cfg: TrainConfig, sources: Sources, stages: dict[str, Record], acceptance: Record | None = None
) -> Record:
    """Where a model or heads come from: data, code, settings, and each stage's record with its figures."""
    corpus, text = sources.corpus, cfg.corpus
    is_stdlib = text.source == "python" and text.root is None and not text.also
    where = "; ".join(source_of(part) for part in [PartConfig(text.source, text.root, text.path), *text.also])
    return {
        "task": cfg.task,
        "data": {
            "source": f"Python {platform.python_version()} standard library" if is_stdlib else where,
            "license": "PSF-2.0" if is_stdlib else None,  # of other data, only the user knows
            "sha256": corpus.sha256 if not corpus.also else [part.sha256 for part in corpus.parts],
            "heldout_percent": text.heldout_percent,
            "num_train": sum(len(part.train) for part in corpus.parts),
            "num_heldout": sum(len(part.heldout) for part in corpus.parts),
        },
        "target_fingerprint": sources.fingerprint if cfg.task != "lm" else None,
        **code_record(),
        "seed": cfg.seed,
        "stages": stages,
        "acceptance": acceptance,
        "config": settings_record(cfg),
    }


def source_of(part: PartConfig) -> str:
    """Where a part of a corpus comes from, in words for a card."""
    if part.source == "target":
        return "questions that the target wrote itself"
    if part.source == "python":
        return f"python: {part.root or 'the standard library'}"
    return f"{part.source}: {part.path}"


def code_record() -> Record:
    """Versions, revision and machine."""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "git_revision": git_revision(),
        "machine": {"processor": platform.machine(), "system": platform.system()},
    }


def settings_record(cfg: TrainConfig) -> Record:
    """All settings but those of output folders and display; folders by their whole path, wherever the run started."""
    found = {key: value for key, value in asdict(cfg).items() if key not in ("output_dir", "export_dir", "progress")}
    parts = [(part, "path") for part in (found["corpus"], *found["corpus"]["also"])]
    for settings, key in ((found, "frozen"), (found, "tokenizer"), (found, "start"), *parts):
        if settings[key] and Path(settings[key]).expanduser().exists():
            settings[key] = str(Path(settings[key]).expanduser().resolve())
    return found


def export_model(cfg: TrainConfig, model: Any, sources: Sources, record: Record) -> Path:
    """A model and its tokenizer in one folder in Hub format: for `pair.target=`, `pair.draft=`, and `transformers`."""

    def write(staged: Path) -> None:
        save_model(model, staged)
        sources.tokenizer.save_pretrained(str(staged))
        (staged / "README.md").write_text(model_card(record))

    return replace_folder(cfg, write, record)


def export_heads(cfg: TrainConfig, settings: dict[str, Any], module: Any, target: CausalLM, record: Record) -> Path:
    """The folder for `drafter=KIND drafter.path=`."""

    def write(staged: Path) -> None:
        write_heads(staged, cfg.heads, settings, module, target)
        (staged / "README.md").write_text(model_card(record))

    return replace_folder(cfg, write, record)


def replace_folder(cfg: TrainConfig, write: Callable[[Path], None], record: Record, name: str = "") -> Path:
    """Let ``write`` fill a folder beside the destination, add provenance.json, and rename it to the destination."""
    destination = Path(cfg.export_dir) if cfg.export_dir else output_folder(cfg) / "export" / name
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".export-") as scratch:
        staged = Path(scratch) / "staged"
        staged.mkdir()
        write(staged)
        write_json(staged / "provenance.json", record)
        shutil.rmtree(destination, ignore_errors=True)
        staged.rename(destination)
    return destination
