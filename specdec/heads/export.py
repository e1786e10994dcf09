"""Heads as folders that others load too: the layout of `speculators`; of EAGLE and Medusa, that of their authors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specdec.core.tensor_files import write_tensors
from specdec.heads.folder import CONFIG
from specdec.heads.spec import HeadSpec

ARCHITECTURES = {
    "eagle": "LlamaForCausalLM",
    "eagle3": "Eagle3DraftModel",
    "peagle": "PEagleDraftModel",
    "specblock": "SpecBlockDraftModel",
    "dflash": "DFlashDraftModel",
    "dspark": "DSparkDraftModel",
    "mtp": "MTPDraftModel",
}
WRITTEN_AS = "0.9.0"
"""The version of `speculators` whose layout this is."""


def save_head(
    folder: Path,
    spec: HeadSpec,
    tensors: Mapping[str, Tensor],
    *,
    num_drafted: int,
    verifier: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write config.json and model.safetensors.

    Args:
        spec: of the layout of `speculators`, or of that of their authors for EAGLE and Medusa; its kind, ``layer`` and
            ``config`` are written. tensors: by the names of `speculators`.
        num_drafted: tokens per round that it was trained to draft.
        verifier: ``name_or_path`` and ``architectures`` of the target.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {_saved_name(spec, name): tensor for name, tensor in tensors.items()}
    cast = {n: t.to(dtype) if t.is_floating_point() else t for n, t in named.items()}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in cast.items()}
    write_tensors(weights, folder / "model.safetensors", of_a_model=True)
    (folder / CONFIG).write_text(json.dumps(_config(spec, num_drafted, verifier, dtype), indent=2) + "\n")


def _config(spec: HeadSpec, num_drafted: int, verifier: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    named = str(dtype).removeprefix("torch.")
    if spec.kind == "medusa":
        return {**spec.config, "base_model_name_or_path": verifier.get("name_or_path")}
    if spec.kind == "eagle":
        return {"architectures": [ARCHITECTURES["eagle"]], **spec.layer, "dtype": named}
    method = {"proposal_type": "greedy", "speculative_tokens": num_drafted}
    return {
        "architectures": [ARCHITECTURES[spec.kind]],
        "speculators_model_type": spec.kind,
        "speculators_version": WRITTEN_AS,
        "dtype": named,
        "tie_word_embeddings": False,
        "draft_vocab_size": spec.vocab_size,
        **spec.config,
        "transformer_layer_config": {"model_type": "llama", **spec.layer},
        "speculators_config": {
            "algorithm": spec.kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{**method, "accept_tolerance": 0.0, "verifier_accept_k": 1}],
            "verifier": {"name_or_path": None, "architectures": [], **verifier},
        },
    }


def _saved_name(spec: HeadSpec, name: str) -> str:
    return name.replace("layers.", "mtp_layers.", 1) if spec.kind == "mtp" else name
