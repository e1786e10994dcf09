"""Peak memory of a run: the device allocator's on a GPU, the process's resident set on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")


class PeakMemory:
    """Highest memory seen since it was made, in bytes. On a CPU it is sampled, once per round."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.sample()

    def sample(self) -> None:
        """Look at the memory now."""
        if self._device.type != "cuda":
            self._peak = max(self._peak, _resident_bytes())

    @property
    def bytes(self) -> int:
        """The peak."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return self._peak


def _resident_bytes() -> int:
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # macOS: the peak of the whole process is the best there is, in bytes there

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
