"""llama.cpp through llama-cpp-python: the GGUF file in the target's folder, several sequences in one batch.

Its arithmetic is its own (quantised weights times 8-bit activations, 16-bit cache), so its outputs need not be those of
the dequantised model. The Python package drafts for one sequence at a time and by prompt lookup only.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np
from peer_protocol import LONGEST_NGRAM, Request, serve

_BLOCK = 256  # llama.cpp rounds the length of a sequence's cache up to it
_models: dict[str, Any] = {}
_contexts: dict[tuple[str, int, int, int], Context] = {}
_lookups: dict[tuple[str, int, int, int], Any] = {}


@dataclass(slots=True)
class Row:
    """A sequence: the tokens that the next forward takes, and those before it."""

    index: int
    pending: list[int]
    num_cached: int = 0
    output: list[int] = field(default_factory=list)


class Context:
    """A cache for ``num_rows`` sequences of at most ``length`` tokens, each of its own stream, and a batch to fill."""

    def __init__(self, file: str, num_rows: int, length: int, threads: int) -> None:
        if file not in _models:
            settings = lib.llama_model_default_params()
            settings.n_gpu_layers = 0
            _models[file] = lib.llama_model_load_from_file(file.encode(), settings)
            if not _models[file]:
                raise ValueError(f"llama.cpp cannot read {file}")
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_rows * length, num_rows
        params.n_batch = num_rows * length
        params.n_outputs_max = num_rows
        params.n_threads = params.n_threads_batch = threads
        self.pointer = lib.llama_init_from_model(_models[file], params)
        if not self.pointer:
            raise ValueError(f"llama.cpp has no room for {num_rows} sequences of {length} tokens")
        self._memory = lib.llama_get_memory(self.pointer)
        self._batch = lib.llama_batch_init(params.n_batch, 0, 1)
        self._num_words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(_models[file]))

    def step(self, rows: dict[int, Row]) -> dict[int, int]:
        """One forward over the pending tokens of all rows; returns the most probable next token of each."""
        batch, count = self._batch, 0
        for place, row in rows.items():
            for token in row.pending:
                batch.token[count] = token
                batch.pos[count] = row.num_cached
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = place
                batch.logits[count] = 0
                row.num_cached += 1
                count += 1
            batch.logits[count - 1] = 1
        batch.n_tokens = count
        if code := lib.llama_decode(self.pointer, batch):
            raise RuntimeError(f"llama_decode returned {code} for {count} tokens of {len(rows)} sequences")
        logits = lib.llama_get_logits(self.pointer)  # of the marked tokens, in their order
        array = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (len(rows), self._num_words))
        return dict(zip(rows, array.argmax(axis=1).tolist(), strict=True))

    def close(self) -> None:
        """Free what the context holds."""
        lib.llama_batch_free(self._batch)
        lib.llama_free(self.pointer)

    def release(self, place: int) -> None:
        """Forget a finished row."""
        lib.llama_memory_seq_rm(self._memory, place, -1, -1)


def gguf_file(request: Request) -> str:
    """The GGUF file that the options name, or the one in the target's folder."""
    named = request["options"].get("gguf")
    files = [Path(named)] if named else sorted(Path(request["target"]).glob("*.gguf"))
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"llama.cpp reads GGUF files, and there is none: {named or request['target']}")
    return str(files[0])


def context(request: Request) -> Context:
    """A context that holds the request; one is kept, for others of the same batch size and length."""
    needed = max(map(len, request["prompts"])) + request["max_new_tokens"]
    length = -(-needed // _BLOCK) * _BLOCK
    key = (gguf_file(request), request["batch"], length, request["threads"])
    if key not in _contexts:
        for other in list(_contexts):
            _contexts.pop(other).close()
        _contexts[key] = Context(*key)
    return _contexts[key]


def handle(request: Request) -> tuple[list[list[int]], float]:
    if request["options"].get("lookup"):
        return with_lookup(request)
    run, stops, budget = context(request), request["stop_ids"], request["max_new_tokens"]
    waiting = [Row(index, prompt) for index, prompt in enumerate(request["prompts"])][::-1]
    free, rows = list(range(request["batch"]))[::-1], dict[int, Row]()
    outputs: dict[int, list[int]] = {}
    started = time.perf_counter()
    while waiting or rows:
        while waiting and free:
            rows[free.pop()] = waiting.pop()
        for place, token in run.step(rows).items():
            row = rows[place]
            row.output.append(token)
            row.pending = [token]
            if token in stops or len(row.output) == budget:
                outputs[row.index] = rows.pop(place).output
                run.release(place)
                free.append(place)
    seconds = time.perf_counter() - started
    return [outputs[index] for index in range(len(outputs))], seconds


def with_lookup(request: Request) -> tuple[list[list[int]], float]:
    """The package's own prompt lookup: `Llama.generate` with `LlamaPromptLookupDecoding`, one sequence at a time."""
    if request["batch"] != 1:
        raise ValueError("llama-cpp-python drafts for one sequence at a time: batch 1 only")
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    needed = max(map(len, request["prompts"])) + request["max_new_tokens"] + request["gamma"]
    length = -(-needed // _BLOCK) * _BLOCK
    key = (gguf_file(request), length, request["gamma"], request["threads"])
    if key not in _lookups:
        draft = LlamaPromptLookupDecoding(LONGEST_NGRAM, num_pred_tokens=request["gamma"])
        threads = {"n_threads": key[3], "n_threads_batch": key[3]}
        _lookups[key] = lib.Llama(key[0], n_ctx=length, n_batch=length, draft_model=draft, verbose=False, **threads)
    model, budget, outputs = _lookups[key], request["max_new_tokens"], []
    started = time.perf_counter()
    for prompt in request["prompts"]:
        model.reset()  # no prompt starts from another's cache
        output: list[int] = []
        for token in model.generate(prompt, temp=0.0):
            output.append(token)
            if token in request["stop_ids"] or len(output) == budget:
                break
        outputs.append(output)
    return outputs, time.perf_counter() - started


if __name__ == "__main__":
    serve(handle, ("llama_cpp_python", "numpy"))
