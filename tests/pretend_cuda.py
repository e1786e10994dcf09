"""A GPU without a GPU: CPU tensors that pretend to be on "cuda", with real values.

A mode of torch sees every call. It answers ``.device``, raises where a call mixes tensors of both devices, and counts
where the host would wait for the device. It works on any build of torch, and beyond decoding (backward, optimizers).

    with PretendCuda() as gpu:
        model.to("cuda")
        ...
        gpu.waits  # {"tolist at verifiers/base.py:79": 12, ...}

Not seen: kernels, CUDA graphs, and what a single call does inside (a backward pass, an operator of torch). Compiled
functions run as plain Python. ``torch.cuda`` is replaced as far as this project and its libraries ask for it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _device

import specdec

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NAME = "Pretended GPU"
MEMORY_BYTES = 80 << 30

RESULTS = {"tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__contains__", "is_nonzero"}
RESULTS |= {"nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount", "equal", "allclose"}
"""Calls that need a value of the device on the host, or the number of its results."""
HOST_ONLY = {"numpy", "__array__"}
INDEXING = {"__getitem__", "__setitem__"}
FROM_LISTS = {"tensor", "as_tensor", "new_tensor"}
ACROSS = {"copy_", "set_", "_has_compatible_shallow_copy_type", "__deepcopy__"}  # whose memo holds other tensors
"""Calls that may take tensors of both devices."""
HERE = str(Path(specdec.__file__).parent)


class MixedDevicesError(RuntimeError):
    """A call that a GPU would refuse."""


class PretendCuda(TorchFunctionMode):
    """Within the block, "cuda" is a device. ``waits`` counts by call and place in specdec/ where the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.num_synchronized = 0  # calls of torch.cuda.synchronize, which only clocks make
        self._patches = ExitStack()

    @property
    def num_waits(self) -> int:
        """How often the host waited for the device, other than to measure time."""
        return sum(self.waits.values())

    def __enter__(self) -> PretendCuda:
        self._patches.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would be out of sight
        for patched in _patches(self):
            self._patches.enter_context(patched)
        return super().__enter__()  # type: ignore[return-value]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def synchronized(self, *_: Any) -> None:
        """Stands for ``torch.cuda.synchronize``."""
        self.num_synchronized += 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return self._attribute(func, name, args)
        if name == "_parse_to":  # module.to(device=...): the answer goes to each tensor's own ``to``
            return func(*args, **kwargs)
        if name in ("to", "cuda", "cpu") and isinstance(args[0], torch.Tensor):
            return self._moved(name, func, args, kwargs)
        if name == "pin_memory":
            return _tagged(args[0].clone(), False, pinned=True)
        place = self._place(func, kwargs)
        pinned = bool(kwargs.pop("pin_memory", False))
        tensors = list(_leaves((args, kwargs)))
        here = any(map(on_gpu, tensors))
        if here:
            self._check(name, args, kwargs, tensors)
        if name in FROM_LISTS and (place if place is not None else name == "new_tensor" and on_gpu(args[0])):
            self._wait(f"upload by {name}")
        result = func(*args, **kwargs)
        if args and result is args[0]:  # in place: it stays where it is
            return result
        return _tagged(result, here if place is None else place, pinned=pinned)

    def _attribute(self, func: Any, kind: str, args: Any) -> Any:
        """``tensor.device``, ``.data``, ``.grad``, ``.T`` and the like."""
        name = getattr(func.__self__, "__name__", "")
        if kind == "__set__":
            func(*args)
            if name == "data":
                _tagged(args[0], on_gpu(args[1]))
            return None
        if name == "device":
            return GPU if on_gpu(args[0]) else func(*args)
        if name in ("is_cuda", "is_cpu"):
            return on_gpu(args[0]) == (name == "is_cuda")
        return _tagged(func(*args), on_gpu(args[0]))

    def _moved(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        """``to``, ``cuda`` and ``cpu``: the same values, converted, with another tag."""
        tensor, *rest = args
        before = after = on_gpu(tensor)
        if name != "to":
            after, rest = name == "cuda", []
        for place, value in enumerate(rest):
            if isinstance(value, torch.Tensor):
                after = on_gpu(value)
            elif isinstance(value, torch.device | str):
                after, rest[place] = _is_gpu(value), _real(value)
        if kwargs.get("device") is not None:
            after, kwargs["device"] = _is_gpu(kwargs["device"]), _real(kwargs["device"])
        waiting = not (kwargs.get("non_blocking") and (before or getattr(tensor, "_pinned", False)))
        if before != after and (waiting or before):
            self._wait(f"{'upload' if after else 'download'} by {name}")
        moved = func(tensor, *rest, **kwargs) if name == "to" else tensor
        if moved is tensor and before != after:
            moved = tensor.clone()
        return moved if moved is tensor else _tagged(moved, after)

    def _place(self, func: Any, kwargs: dict[str, Any]) -> bool | None:
        """Whether the call names the GPU as the place of its result; None if it names none."""
        if kwargs.get("device") is not None:
            place, kwargs["device"] = _is_gpu(kwargs["device"]), _real(kwargs["device"])
            return place
        if _device.CURRENT_DEVICE is not None and func in _device._device_constructors():
            # Set here, or torch's own mode, which lies below this one, would ask for a GPU.
            kwargs["device"] = _real(_device.CURRENT_DEVICE)
            return _is_gpu(_device.CURRENT_DEVICE)
        return None

    def _check(self, name: str, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> None:
        """Raise where devices are mixed; count a wait where the host needs a value."""
        if name in HOST_ONLY:
            raise MixedDevicesError(f"{name}: a tensor on the GPU must be moved to the CPU first")
        elsewhere = [tensor for tensor in tensors if not on_gpu(tensor) and tensor.dim() > 0]
        indexes = name in INDEXING and on_gpu(args[0])
        if name == "copy_" and elsewhere:
            pinned = kwargs.get("non_blocking") and getattr(args[1], "_pinned", False)
            if on_gpu(args[1]) or not pinned:
                self._wait("copy_")
        elif elsewhere and not indexes and name not in ACROSS:
            shapes = [[tuple(t.shape) for t in tensors if on_gpu(t) == side] for side in (True, False)]
            raise MixedDevicesError(f"{name}: shapes {shapes[0]} are on the GPU, {shapes[1]} on the CPU")
        if name in RESULTS or (name == "where" and len(args) == 1):
            self._wait(name)
        if indexes:
            self._check_index(name, args)

    def _check_index(self, name: str, args: Any) -> None:
        """Of a tensor on the GPU: indices of the host are copied there, and masks are counted on the host."""
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        writes_number = name == "__setitem__" and not isinstance(args[2], torch.Tensor)  # where nothing is counted
        for part in parts:
            if isinstance(part, list) or (isinstance(part, torch.Tensor) and part.dim() and not on_gpu(part)):
                self._wait("upload of an index")
            elif isinstance(part, torch.Tensor) and part.dtype == torch.bool and not writes_number:
                self._wait("index by a mask")
        if name == "__setitem__" and isinstance(args[2], torch.Tensor) and args[2].dim() and not on_gpu(args[2]):
            raise MixedDevicesError(f"{name}: values on the CPU are written to a tensor on the GPU")

    def _wait(self, what: str) -> None:
        self.waits[f"{what} at {_caller()}"] += 1


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether a tensor pretends to be on the GPU."""
    return getattr(tensor, "_pretends", False)


def _is_gpu(device: Any) -> bool:
    return isinstance(device, int) or torch.device(device).type == "cuda"


def _real(device: Any) -> torch.device:
    """Where the values of a tensor on this device are. "meta" has none: a model that is built there is filled later."""
    return CPU if _is_gpu(device) else torch.device(device)


def _leaves(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple | dict):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _leaves(value)


def _tagged(result: Any, gpu: bool, *, pinned: bool = False) -> Any:
    for tensor in _leaves(result):
        tensor._pretends, tensor._pinned = gpu, pinned  # type: ignore[attr-defined]
    return result


def _caller() -> str:
    """The innermost line of specdec/ that is being run."""
    frame: Any = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(HERE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename[len(HERE) + 1 :]}:{frame.f_lineno}" if frame else "elsewhere"


class _Event:
    """``torch.cuda.Event``, in the order of the host: there is nothing to wait for."""

    def __init__(self, **_: Any) -> None:
        self.recorded = 0.0

    def record(self, *_: Any) -> None:
        self.recorded = time.perf_counter()

    def wait(self, *_: Any) -> None:
        pass

    synchronize = wait

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _Event) -> float:
        return 1000 * (end.recorded - self.recorded)


def _patches(gpu: PretendCuda) -> list[Any]:
    """Everything of torch that answers otherwise while there is a GPU."""
    fixed: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "memory_allocated": 1 << 30,
        "max_memory_allocated": 1 << 30,
        "memory_reserved": 1 << 30,
        "mem_get_info": (MEMORY_BYTES, MEMORY_BYTES),
        "empty_cache": None,
        "set_device": None,
        "reset_peak_memory_stats": None,
        "get_rng_state": torch.get_rng_state(),
        "set_rng_state": None,
    }
    make_subclass: Callable[..., Any] = torch.Tensor._make_subclass

    def parameter(cls: Any, data: torch.Tensor, *rest: Any, **options: Any) -> Any:
        return _tagged(make_subclass(cls, data, *rest, **options), on_gpu(data))

    answers = {name: partial(lambda value, *_, **__: value, value) for name, value in fixed.items()}
    patches = [patch.object(torch.cuda, name, answer) for name, answer in answers.items()]
    patches += [patch.object(torch.cuda, "synchronize", gpu.synchronized), patch.object(torch.cuda, "Event", _Event)]
    # A build with CUDA says there is an accelerator, and optimizers ask its driver, which is not there.
    patches += [patch.object(torch.accelerator, "current_accelerator", lambda *_, **__: None)]
    return [*patches, patch.object(torch.Tensor, "_make_subclass", parameter)]
