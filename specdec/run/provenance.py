"""Where a result comes from: code, versions, machine and command."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from specdec.config.identity import input_hashes
from specdec.config.schema import RunConfig
from specdec.models.pair import Pair
from specdec.run.loggers.secrets import scrub

_PACKAGES = ("specdec", "torch", "transformers", "tokenizers", "hydra-core", "datasets", "lightning")


def environment(config: RunConfig, overrides: list[str], pair: Pair, notes: list[str]) -> dict[str, Any]:
    """Everything besides the config that is needed to repeat a run."""
    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "argv": scrub(sys.argv),
        "overrides": scrub(overrides),
        "sweep": sweep_name(),
        "git_revision": git_revision(),
        "versions": {name: package_version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "device": torch.cuda.get_device_name() if cuda and config.runner.accelerator != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "pair_fingerprint": pair.fingerprint,
        "draft_fingerprint": pair.draft_fingerprint,
        "inputs": input_hashes(config),
        "notes": notes,
    }


def sweep_name() -> str | None:
    """The name of the folder with the sweep's outcomes; None outside a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def git_revision() -> str | None:
    """Revision of the source tree, with ``-dirty`` if it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def package_version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
