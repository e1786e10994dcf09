"""Folders that others load: models with their tokenizer, what is trained beside a target, and the built-in pair.

Each has a model card and provenance.json (data, versions, revision, settings, figures); each is assembled beside its
destination and takes its place by a rename.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.core.files import write_json
from specdec.drafters.trained import save_heads
from specdec.run.provenance import git_revision
from specdec.training import TrainingError
from specdec.training.card import model_card, trained_card
from specdec.training.config import TrainConfig, output_folder
from specdec.training.model import save_model
from specdec.training.stages import Record

if TYPE_CHECKING:
    from specdec.models.causal_lm import CausalLM
    from specdec.training.sources import Sources

# Stage folder -> place in the export of a pair.
PARTS = {"target/model": "target", "draft/model": "draft", "tokenizer": "tokenizer"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PACKAGES = ("torch", "transformers", "tokenizers", "lightning", "numpy")


def provenance_of(
    cfg: TrainConfig, sources: Sources, stages: dict[str, Record], acceptance: Record | None = None
) -> Record:
    """Where a model or heads come from: data, code, settings, and each stage's record with its figures."""
    corpus = sources.corpus
    is_stdlib = cfg.corpus.source == "python" and cfg.corpus.root is None
    return {
        "task": cfg.task,
        "data": {
            "source": f"Python {platform.python_version()} standard library" if is_stdlib else _where(cfg),
            "license": "PSF-2.0" if is_stdlib else None,  # otherwise the user's to know
            "sha256": corpus.sha256,
            "heldout_percent": cfg.corpus.heldout_percent,
            "num_train": len(corpus.train),
            "num_heldout": len(corpus.heldout),
        },
        "target_fingerprint": sources.fingerprint if cfg.task != "lm" else None,
        **_code(),
        "seed": cfg.seed,
        "stages": stages,
        "acceptance": acceptance,
        "config": _settings(cfg),
    }


def export_model(cfg: TrainConfig, folder: Path, model: Any, sources: Sources, record: Record) -> Path:
    """A model and its tokenizer in one folder in Hub format: for `pair.target=`, `pair.draft=`, and `transformers`."""

    def write(staged: Path) -> None:
        save_model(model, staged)
        sources.tokenizer.save_pretrained(str(staged))
        if record["acceptance"] is not None:
            use = "Use it, with the target that it was trained for, as `python run.py pair=FOLDER`."
            learned = f"{cfg.distill.data} ({_losses(cfg)})"
            (staged / "README.md").write_text(trained_card(record, "A draft model", use, learned))
        else:
            (staged / "README.md").write_text(_language_card(record))

    return _replace(cfg, folder, write, record)


def export_trained(
    cfg: TrainConfig, folder: Path, settings: dict[str, Any], module: Any, target: CausalLM, record: Record
) -> Path:
    """The folder for `drafter=KIND drafter.path=`."""
    kind = cfg.heads.kind

    def write(staged: Path) -> None:
        save_heads(staged, kind, settings, module, target)
        use = f"Use it with `python run.py drafter={kind} drafter.path=FOLDER` and the same target."
        learned = f"{cfg.distill.data} (forward KL, decay {cfg.heads.decay})"
        (staged / "README.md").write_text(trained_card(record, f"Weights for drafter={kind}", use, learned))

    return _replace(cfg, folder, write, record)


def export_pair(cfg: TrainConfig, folder: Path, records: dict[str, Any], prompts_path: Path) -> Path:
    """The built-in pair: two models, tokenizer, card, provenance; the held-out prompts lie beside it."""
    record = pair_provenance(cfg, records)

    def write(staged: Path) -> None:
        for source, name in PARTS.items():
            _copy_part(folder / source, staged / name)
        num_bytes = sum(path.stat().st_size for path in staged.rglob("*.safetensors"))
        if num_bytes > cfg.max_export_bytes:
            raise TrainingError(f"max_export_bytes={cfg.max_export_bytes}, but the safetensors have {num_bytes}")
        record["safetensors_bytes"] = num_bytes
        (staged / "README.md").write_text(model_card(record))

    destination = _replace(cfg, folder, write, record, "tiny")
    shutil.copyfile(prompts_path, destination.parent / "heldout.jsonl")
    return destination


def pair_provenance(cfg: TrainConfig, records: dict[str, Any]) -> Record:
    """Where the built-in pair comes from."""
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
        **_code(),
        "seed": cfg.seed,
        "stages": {name: records[name] for name in ("target", "greedy", "warm", "draft")},
        "acceptance": records["acceptance"],
        "step_times": records["step_times"],
        "config": _settings(cfg),
    }


def _code() -> Record:
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "git_revision": git_revision(),
        "machine": {"processor": platform.machine(), "system": platform.system()},
    }


def _settings(cfg: TrainConfig) -> Any:
    from omegaconf import OmegaConf

    settings = OmegaConf.to_container(OmegaConf.structured(cfg))
    assert isinstance(settings, dict)
    return {key: value for key, value in settings.items() if key not in ("output_dir", "export_dir", "progress")}


def _replace(cfg: TrainConfig, folder: Path, write: Callable[[Path], None], record: Record, name: str = "") -> Path:
    """Assemble beside the destination, then take its place."""
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


def _where(cfg: TrainConfig) -> str:
    return f"{cfg.corpus.source}: {cfg.corpus.root if cfg.corpus.source == 'python' else cfg.corpus.path}"


def _losses(cfg: TrainConfig) -> str:
    names = ("ce", "argmax", "forward_kl", "reverse_kl", "tv")
    weights = [f"{name} {getattr(cfg.distill, name):g}" for name in names if getattr(cfg.distill, name)]
    return ", ".join([*weights, *([f"on policy {cfg.distill.on_policy:g}"] if cfg.distill.on_policy else [])])


def _language_card(record: Record) -> str:
    fit, data = record["stages"]["fit"], record["data"]
    return (
        f"# A causal language model\n\nMade by `python train.py task=lm`: {fit['steps']} steps, "
        f"{fit['tokens']:,} tokens of {data['source']} ({data['num_train']:,} documents, {data['num_heldout']:,} "
        f"held out), held-out loss {fit['final']['heldout_loss']} nats per token. Weights are stored as "
        "bfloat16. Everything else is in `provenance.json`.\n"
    )


def _copy_part(source: Path, destination: Path) -> None:
    """A model folder whole; of the tokenizer's stage folder its own files only."""
    destination.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and (source.name == "model" or path.name in TOKENIZER_FILES):
            shutil.copyfile(path, destination / path.name)
