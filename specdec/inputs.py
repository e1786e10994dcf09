"""What a point reads from disk, in short: so that a finished result is not taken for one of other files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from omegaconf import DictConfig

from specdec import assets

_HASHED_BYTES = 64 * 1024 * 1024


def signature(cfg: DictConfig) -> dict[str, str]:
    """Per local input: a hash of its content (of names, sizes and times, for large files)."""
    named = {f"pair.{role}": cfg.pair[role] for role in ("target", "draft", "tokenizer")}
    named["data.path"] = cfg.data.path
    return {key: _hash(Path(assets.resolve(name))) for key, name in named.items() if name and _exists(name)}


def _exists(name: str) -> bool:
    return Path(assets.resolve(name)).exists()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.glob("*")) if path.is_dir() else [path]:
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file.name}:{stat.st_size}".encode())
            digest.update(file.read_bytes() if stat.st_size <= _HASHED_BYTES else str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
