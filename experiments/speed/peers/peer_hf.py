"""`transformers` generate: batched (left padding, batch after batch); with a draft or prompt lookup at batch 1 only."""

from __future__ import annotations

import time
from typing import Any

import torch
from peer_protocol import Request, cut, serve
from transformers import AutoModelForCausalLM

_models: dict[str, Any] = {}


def model(folder: str, dtype: str) -> Any:
    if folder not in _models:
        _models[folder] = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        if torch.cuda.is_available():
            _models[folder].to("cuda")
    return _models[folder]


@torch.inference_mode()
def handle(request: Request) -> tuple[list[list[int]], float]:
    torch.set_num_threads(request["threads"])
    target = model(request["target"], request["dtype"])
    settings: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": request["max_new_tokens"],
        "eos_token_id": request["stop_ids"] or None,
        "pad_token_id": 0,
    }
    if request["draft"] is not None:
        if request["batch"] != 1:
            raise ValueError("transformers assists one row at a time: batch 1 only")
        draft = model(request["draft"], request["dtype"])
        draft.generation_config.num_assistant_tokens = request["gamma"]
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        settings["assistant_model"] = draft
    if request["options"].get("lookup"):
        if request["batch"] != 1:
            raise ValueError("transformers looks up drafts for one row at a time: batch 1 only")
        settings["prompt_lookup_num_tokens"] = request["gamma"]
    if not request["stop_ids"]:
        target.generation_config.eos_token_id = None
    prompts, outputs = request["prompts"], []
    started = time.perf_counter()
    for first in range(0, len(prompts), request["batch"]):
        outputs += generate(target, prompts[first : first + request["batch"]], settings)
    seconds = time.perf_counter() - started
    return [cut(ids, request["stop_ids"], request["max_new_tokens"]) for ids in outputs], seconds


def generate(target: Any, prompts: list[list[int]], settings: dict[str, Any]) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=target.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=target.device)
    result: list[list[int]] = target.generate(ids, attention_mask=mask, **settings)[:, width:].tolist()
    return result


if __name__ == "__main__":
    serve(handle, ("transformers", "torch"))
