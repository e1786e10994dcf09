"""Reference outputs (greedy decoding of the target alone at batch 1), kept on disk, and the comparison with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.core.files import append_line, digest, read_lines


@dataclass(frozen=True, slots=True)
class Match:
    """One row compared with its reference."""

    exact: bool
    first_divergence: int | None  # output position of the first difference; a missing or extra token counts
    share: float  # tokens before the first difference / tokens of the reference


def compare(output: list[int], reference: list[int]) -> Match:
    """Compare token by token; outputs of different lengths differ where the shorter one ends."""
    if output == reference:
        return Match(True, None, 1.0)
    shorter = min(len(output), len(reference))
    first = next((i for i in range(shorter) if output[i] != reference[i]), shorter)
    return Match(False, first, first / max(len(reference), 1))


class ReferenceStore:
    """Outputs of plain batch-1 greedy decoding, one line per prompt, in a file named by the hash of its settings.

    The file is append-only, so that an interrupted computation resumes where it stopped, and points of a sweep that
    share pair, data and settings compute nothing twice.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, writes: bool = True) -> None:
        self.key = digest(settings)
        self.path = folder / f"{self.key}.jsonl"
        self.outputs: dict[str, list[int]] = {}  # by the digest of the prompt
        self._writes = writes
        self.reload()
        if writes and not self.path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            append_line(self.path, {"settings": settings})

    def reload(self) -> None:
        """Read the file again, with what other processes have added."""
        records = (record for record in read_lines(self.path) if "output_ids" in record)
        self.outputs.update({record["prompt"]: record["output_ids"] for record in records})

    def get(self, prompt_ids: list[int]) -> list[int] | None:
        """The reference output of a prompt, if it is known."""
        return self.outputs.get(digest(prompt_ids))

    def add(self, prompt_ids: list[int], output_ids: list[int]) -> None:
        """Add an output, written to disk immediately unless the store is read-only."""
        key = digest(prompt_ids)
        self.outputs[key] = list(output_ids)
        if not self._writes:
            return
        if self._torn():
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write("\n")
        append_line(self.path, {"prompt": key, "output_ids": output_ids})

    def _torn(self) -> bool:
        """Whether the file ends within a line, because a process was killed while writing."""
        with self.path.open("rb") as stream:
            if stream.seek(0, 2) == 0:
                return False
            stream.seek(-1, 2)
            return stream.read(1) != b"\n"
