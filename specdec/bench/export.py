"""A pair as folders in Hub format, which every other engine reads."""

from __future__ import annotations

from pathlib import Path

from specdec.assets import local_path
from specdec.config.schema import RunConfig
from specdec.core.files import digest, let_others_read, write_json
from specdec.models.gguf import is_gguf
from specdec.models.pair import Pair

_DONE = "exported.json"


def export_pair(cfg: RunConfig, pair: Pair, cache: Path) -> tuple[Path, Path | None]:
    """Folders of target and draft: those that the pair was loaded from, or new ones under ``cache``.

    Call it before anything is decoded, so that no engine has packed the weights yet.
    """
    if cfg.weights == "pretrained":
        names = (cfg.pair.target, cfg.pair.draft)
        folders = [local_path(name) if name else None for name in names]
        if all(folder is None or (folder.is_dir() and _is_whole(folder)) for folder in folders) and folders[0]:
            return folders[0], folders[1]
    root = cache / "models" / digest([pair.fingerprint, pair.draft_fingerprint, str(cfg.runner.dtype)])
    target, draft = root / "target", root / "draft" if pair.draft is not None else None
    for folder, model in ((target, pair.target), (draft, pair.draft)):
        if folder is None or model is None or (folder / _DONE).exists():
            continue
        model.module.save_pretrained(folder)
        pair.tokenizer.save_pretrained(folder)
        let_others_read(*folder.glob("*.safetensors"))
        if model is pair.target and is_gguf(cfg.pair.target):  # for engines that read such files
            (folder / "target.gguf").unlink(missing_ok=True)
            (folder / "target.gguf").symlink_to(local_path(str(cfg.pair.target)).resolve())
        write_json(folder / _DONE, {"pair": pair.name, "fingerprint": pair.fingerprint})
    return target, draft


def _is_whole(folder: Path) -> bool:
    """Whether the tokenizer is in the same folder as the weights, as some engines require."""
    return (folder / "tokenizer.json").exists()
