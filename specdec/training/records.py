"""Data on disk that is larger than memory: arrays that are written part by part, and records that are read one by one.

Records are read with single calls, not mapped: what was read once does not count as memory of the process.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, overload

import numpy as np

PART = 1 << 20  # entries of a mapped array that are read at once
ENDS_AT_ONCE = 1000


class ArrayWriter:
    """A one-dimensional .npy file that grows, for ``np.load(mmap_mode="r")``."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.dtype, self.length, self._stream = np.dtype(dtype), 0, path.open("wb")
        self._write_header()

    def append(self, values: Any) -> None:
        """Add values at the end."""
        array = np.asarray(values, self.dtype)
        self._stream.write(array.tobytes())
        self.length += len(array)

    def close(self) -> None:
        """Write the length, without which the file is empty."""
        self._stream.seek(0)
        self._write_header()
        self._stream.close()

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_header(self) -> None:
        """As long for every length: numpy leaves room for the first axis to grow."""
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)


class RecordsWriter:
    """Byte strings in one file, and where each of them ends in another."""

    def __init__(self, path: Path) -> None:
        self._stream, self._end, self._new = path.open("wb"), 0, list[int]()
        self._ends = ArrayWriter(path.with_name(path.name + ".ends.npy"), np.int64)

    def __len__(self) -> int:
        return self._ends.length + len(self._new)

    def append(self, record: bytes) -> None:
        """Add a record at the end."""
        self._stream.write(record)
        self._end += len(record)
        self._new.append(self._end)
        if len(self._new) == ENDS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        """Finish both files."""
        self._stream.close()
        self._flush()
        self._ends.close()

    def _flush(self) -> None:
        self._ends.append(self._new)
        self._new.clear()


class Records(Sequence[bytes]):
    """What `RecordsWriter` wrote, read record by record. The files may be deleted while it is in use."""

    def __init__(self, path: Path) -> None:
        self._ends = np.load(path.with_name(path.name + ".ends.npy"), mmap_mode="r")
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start = int(self._ends[place - 1]) if place else 0
        return os.pread(self._file, int(self._ends[place]) - start, start)


def scratch_records(near: Path | None, write: Callable[[RecordsWriter], None]) -> Records:
    """Records of this process alone, whose files vanish with it.

    Args:
        near: the folder on whose disk they are; None: the system's temporary files.
        write: fills them.
    """
    with TemporaryDirectory(dir=near, prefix=".scratch-") as folder:
        writer = RecordsWriter(Path(folder) / "records")
        write(writer)
        writer.close()
        return Records(Path(folder) / "records")
