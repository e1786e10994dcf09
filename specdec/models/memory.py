"""Memory of this process and its device: used, free, and the peak of a run."""

from __future__ import annotations

import math
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


class PeakMemory:
    """Peak memory since construction, in bytes: the allocator's on a GPU, the process's resident set on a CPU.

    If the system's record of the peak cannot be reset, the resident set is sampled, once per round.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorded = False
        self._peak = 0
        self._sampled = -math.inf
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                _CLEAR_REFS.write_text("5")  # resets VmHWM, Linux's record of the highest resident set
                self._recorded = True
        self.sample()

    def sample(self, every_s: float = 0.0) -> None:
        """Include the current memory, unless that was done in the last ``every_s`` seconds."""
        now = time.monotonic()
        if now - self._sampled < every_s:
            return
        self._sampled = now
        if self._device.type == "cuda":  # another PeakMemory may reset the allocator's record
            self._peak = max(self._peak, int(torch.cuda.max_memory_allocated(self._device)))
        else:
            self._peak = max(self._peak, (_status("VmHWM") if self._recorded else None) or resident_bytes())

    @property
    def bytes(self) -> int:
        """The peak so far."""
        if self._device.type == "cuda":
            self.sample()
        return self._peak


def used_bytes(device: torch.device) -> int:
    """Memory that this process uses now, measured like PeakMemory."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else resident_bytes()


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process may still take, or None if the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + int(cached)
    if not _MEMINFO.exists():
        return None
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    limits = [int(available[1]) * 1024] if available else []
    with suppress(OSError, ValueError):  # a container's own limit, "max" if it has none
        limits.append(int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text()))
    return max(min(limits), 0) if limits else None


def resident_bytes() -> int:
    """The resident set of this process."""
    resident = _status("VmRSS")
    if resident is not None:
        return resident
    import resource  # macOS: only the peak of the whole process is known, in bytes

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if os.uname().sysname == "Linux" else 1)


def _status(key: str) -> int | None:
    """A figure of /proc/self/status, in bytes; None if there is none."""
    with suppress(OSError):
        found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None
