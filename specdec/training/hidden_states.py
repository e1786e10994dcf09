"""The target's hidden states of cached outputs, kept on disk for heads: its forward is paid once, not in every pass.

One safetensors file per batch of outputs and layer, named by all that decides it, so that recipes share the layers that
both read. Rows stand one after the other, without padding, in the target's own number format.
Shape letters: B rows, T tokens, L layers, D hidden size, N tokens of all rows of a file, V vocabulary.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from specdec.assets import cache_folder
from specdec.core.tensor_files import write_tensors
from specdec.models.causal_lm import CausalLM
from specdec.training import TrainingError
from specdec.training.config import LINE_EVERY_S
from specdec.training.outputs import load_outputs
from specdec.training.split import alike

ROWS_AT_ONCE = 8
GB = 1e9


class HiddenStates:
    """Hidden states of some layers for the rows of a folder of outputs."""

    def __init__(self, target: CausalLM, fingerprint: str, outputs: Path, layers: list[int]) -> None:
        self.target, self.layers = target, sorted(set(layers))
        self.paths = sorted(outputs.glob("batch_*[0-9].npz"))
        self.folder = cache_folder() / "hidden" / fingerprint
        self._files: dict[Path, list[Path]] = {}
        self._lengths: dict[Path, list[int]] = {}
        for path in self.paths:
            rows = load_outputs(path)
            lengths = (rows.num_prompt_B + rows.num_valid_B).tolist()
            digest = hashlib.sha256(f"{target.dtype} {lengths}".encode())
            for ids_T, length in zip(rows.ids_BT, lengths, strict=True):
                digest.update(ids_T[:length].numpy().tobytes())
            self._lengths[path] = lengths
            self._files[path] = [self.folder / f"{digest.hexdigest()[:24]}-{n}.safetensors" for n in self.layers]

    @property
    def missing(self) -> dict[Path, list[int]]:
        """By the file of outputs, the layers that were not read yet."""
        found = {
            path: [n for n, file in zip(self.layers, files, strict=True) if not file.exists()]
            for path, files in self._files.items()
        }
        return {path: layers for path, layers in found.items() if layers}

    def make(self, out: Path) -> dict[str, Any]:
        """Stage: read what is missing; tells the size before.

        Raises:
            TrainingError: the disk has not the room, or the target's logits are not its head's of the last states.
        """
        missing = self.missing
        width = self.target.module.config.get_text_config().hidden_size * self.target.dtype.itemsize
        num_bytes = sum(sum(self._lengths[path]) * len(layers) * width for path, layers in missing.items())
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        size = f"{num_bytes / GB:.2f} GB of hidden states (layers {self.layers})"
        told = f"{size} in {self.folder}, {free / GB:.1f} GB are free"
        if num_bytes > free:
            raise TrainingError(
                f"heads.cache_hidden=true: {told}: lower greedy.num_batches, set SPECDEC_CACHE to a larger disk, or "
                "set it to false"
            )
        print(f"[hidden] {told}", flush=True)
        start_s = told_s = time.monotonic()
        for num_done, (path, layers) in enumerate(missing.items(), 1):
            self._write(path, layers)
            now_s = time.monotonic()
            if now_s - told_s >= LINE_EVERY_S or num_done == len(missing):
                left_min = (now_s - start_s) / 60 * (len(missing) - num_done) / num_done
                print(f"[hidden] batch {num_done} of {len(missing)}  {left_min:.1f} min left", flush=True)
                told_s = now_s
        return {"bytes_made": num_bytes, "files": len(self.paths) * len(self.layers), "layers": self.layers}

    @torch.inference_mode()
    def _write(self, path: Path, layers: list[int]) -> None:
        rows, lengths = load_outputs(path), self._lengths[path]
        found: dict[int, list[Tensor]] = {number: [] for number in layers}
        for start in range(0, len(lengths), ROWS_AT_ONCE):
            some = lengths[start : start + ROWS_AT_ONCE]
            ids_BT = rows.ids_BT[start : start + ROWS_AT_ONCE, : max(some)].long()
            output = _read(self.target, ids_BT)
            self._check_head(output)
            for number in layers:
                states_BTD = output.hidden_states[number].cpu()
                found[number] += [states_TD[:length] for states_TD, length in zip(states_BTD, some, strict=True)]
        for number in layers:
            file = self._files[path][self.layers.index(number)]
            partial = file.with_name(f".{file.name}.{os.getpid()}")
            write_tensors({"hidden_ND": torch.cat(found[number])}, partial)
            partial.replace(file)

    def _check_head(self, output: Any) -> None:
        """Logits are computed again from the last states: refuse models that scale or cap them."""
        again_BTV = self.target.module.get_output_embeddings()(output.hidden_states[-1][:, -1:])
        if not torch.equal(again_BTV, output.logits):
            raise TrainingError(
                "heads.cache_hidden=true: the target's logits are not its head's of the last hidden states alone "
                "(it scales or caps them): set it to false"
            )

    def of(self, path: Path, chosen: Tensor, width: int) -> Tensor:
        """(B, T, L, D) of some rows of a file of outputs, up to ``width`` tokens T; past a row's end 0.

        Raises:
            TrainingError: the cache was emptied after the stage.
        """
        lengths = self._lengths[path]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        found = torch.zeros(
            len(chosen), width, len(self.layers), self.target.architecture.hidden_size, dtype=self.target.dtype
        )
        for place, file in enumerate(self._files[path]):
            if not file.exists():
                raise TrainingError(f"{file} is gone: delete the folder `hidden` of this run; it is made again")
            with safe_open(file, framework="pt") as stored:
                states_ND = stored.get_slice("hidden_ND")
                for row, number in enumerate(chosen.tolist()):
                    start, size = ends[number] - lengths[number], min(lengths[number], width)
                    found[row, :size, place] = states_ND[start : start + size]
        return found


@alike
def _read(target: CausalLM, ids_BT: Tensor) -> Any:
    """The target's hidden states for these tokens, and its last logits."""
    inputs_BT = ids_BT.to(target.device)
    return target.module(input_ids=inputs_BT, use_cache=False, output_hidden_states=True, logits_to_keep=1)
