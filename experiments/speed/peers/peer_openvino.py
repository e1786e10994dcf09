"""OpenVINO GenAI's continuous batching pipeline, alone, with a draft model or with prompt lookup; in float32.

The models are converted once, by optimum-intel, into a folder beside them. Requests are submitted one by one, at most
``batch`` in flight: the pipeline's own limit (max_num_seqs) lets more rows run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from peer_protocol import LONGEST_NGRAM, Request, cut, serve

_pipelines: dict[tuple[Any, ...], Any] = {}


def converted(folder: str, cache: str) -> str:
    """The folder of the OpenVINO form of a Hub folder."""
    source = Path(folder)
    target = Path(cache) / f"openvino-{source.parent.name}-{source.name}"
    if not (target / "converted").exists():
        from optimum.intel import OVModelForCausalLM
        from transformers import AutoTokenizer

        made = OVModelForCausalLM.from_pretrained(source, export=True, load_in_8bit=False, compile=False)
        made.save_pretrained(target)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.save_pretrained(target)
        from openvino_tokenizers import convert_tokenizer

        for name, part in zip(
            ("openvino_tokenizer.xml", "openvino_detokenizer.xml"),
            convert_tokenizer(tokenizer, with_detokenizer=True),
            strict=True,
        ):
            openvino.save_model(part, target / name)
        (target / "converted").touch()
    return str(target)


def pipeline(request: Request) -> Any:
    lookup = bool(request["options"].get("lookup"))
    batched_tokens = request["options"].get("max_batched_tokens")  # None: the engine's own, 256
    key = (request["target"], request["draft"], lookup, request["threads"], batched_tokens)
    if key not in _pipelines:
        cache = request["options"]["cache"]
        properties = {
            "INFERENCE_NUM_THREADS": request["threads"],
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
        }
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = request["options"].get("cache_gib", 2)
        scheduler.enable_prefix_caching = False
        if batched_tokens is not None:
            scheduler.max_num_batched_tokens = batched_tokens
        extra: dict[str, Any] = {"prompt_lookup": True} if lookup else {}
        if request["draft"] is not None:
            extra["draft_model"] = genai.draft_model(converted(request["draft"], cache), "CPU", **properties)
        _pipelines[key] = genai.ContinuousBatchingPipeline(
            converted(request["target"], cache), scheduler, "CPU", {**properties, **extra}
        )
    return _pipelines[key]


def handle(request: Request) -> tuple[list[list[int]], float]:
    pipe = pipeline(request)
    config = genai.GenerationConfig()
    config.max_new_tokens = request["max_new_tokens"]
    config.do_sample = False
    config.ignore_eos = not request["stop_ids"]
    config.stop_token_ids = set(request["stop_ids"])
    if request["stop_ids"]:
        config.eos_token_id = request["stop_ids"][0]
    if request["draft"] is not None or request["options"].get("lookup"):
        config.num_assistant_tokens = request["gamma"]
    if request["options"].get("lookup"):
        config.max_ngram_size = LONGEST_NGRAM
    waiting = list(enumerate(request["prompts"]))[::-1]
    flying: dict[int, Any] = {}
    outputs: dict[int, list[int]] = {}
    started = time.perf_counter()
    while waiting or flying:
        while waiting and len(flying) < request["batch"]:
            index, prompt = waiting.pop()
            flying[index] = pipe.add_request(index, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
        pipe.step()
        for index in [i for i, handle in flying.items() if handle.get_status() == genai.GenerationStatus.FINISHED]:
            outputs[index] = flying.pop(index).read_all()[0].generated_ids
    seconds = time.perf_counter() - started
    return [cut(list(outputs[i]), request["stop_ids"], request["max_new_tokens"]) for i in range(len(outputs))], seconds


if __name__ == "__main__":
    os.environ.setdefault("OPENVINO_LOG_LEVEL", "0")
    serve(handle, ("openvino-genai", "openvino", "optimum-intel"))
