"""SGLang on a GPU, with or without a standalone draft model; its own scheduler holds at most ``batch`` requests."""

from __future__ import annotations

import time
from typing import Any

from peer_protocol import Request, cut, serve

_engines: dict[tuple[str, str | None, int], Any] = {}


def engine(request: Request) -> Any:
    key = (request["target"], request["draft"], request["batch"])
    if key not in _engines:
        import sglang

        for other in list(_engines):  # two engines need not fit on one device
            _engines.pop(other).shutdown()
        settings: dict[str, Any] = {
            "model_path": request["target"],
            "dtype": request["dtype"],
            "max_running_requests": request["batch"],
            "disable_radix_cache": True,
            "skip_tokenizer_init": True,
            "log_level": "error",
        }
        if request["draft"] is not None:
            settings |= {
                "speculative_algorithm": "STANDALONE",
                "speculative_draft_model_path": request["draft"],
                "speculative_num_steps": request["gamma"],
                "speculative_eagle_topk": 1,
                "speculative_num_draft_tokens": request["gamma"] + 1,
            }
        _engines[key] = sglang.Engine(**settings)
    return _engines[key]


def handle(request: Request) -> tuple[list[list[int]], float]:
    runner = engine(request)
    params = {
        "temperature": 0.0,
        "max_new_tokens": request["max_new_tokens"],
        "stop_token_ids": request["stop_ids"],
        "ignore_eos": not request["stop_ids"],
    }
    started = time.perf_counter()
    results = runner.generate(input_ids=request["prompts"], sampling_params=params)
    seconds = time.perf_counter() - started
    return [cut(list(r["output_ids"]), request["stop_ids"], request["max_new_tokens"]) for r in results], seconds


if __name__ == "__main__":
    serve(handle, ("sglang", "torch", "transformers"))
