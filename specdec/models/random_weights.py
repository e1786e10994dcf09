"""Untrained models: the architecture of a checkpoint with random weights, and the synthetic pair."""

from __future__ import annotations

from typing import Any

import torch

from specdec.assets import local_path
from specdec.config.schema import PairConfig
from specdec.errors import ConfigError
from specdec.models.architecture import check_supported


def random_model(role: str, pair: PairConfig, seed: int, dtype: torch.dtype, device: torch.device) -> Any:
    """The architecture of the pair's target or draft with seeded random weights; nothing is downloaded."""
    architecture = _architecture(role, pair)
    if pair.num_layers is not None:
        limit = architecture["num_hidden_layers"] if role == "draft" else pair.num_layers
        architecture["num_hidden_layers"] = min(pair.num_layers, limit)
    if pair.hidden_size is not None:
        width = architecture["hidden_size"] if role == "draft" else pair.hidden_size
        _resize(architecture, min(pair.hidden_size, width))
    if pair.vocab_size is not None:
        # A smaller vocabulary may lack special tokens, which mean nothing to random weights anyway.
        architecture.update(vocab_size=pair.vocab_size, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    return _build(architecture, pair, dtype, device, seed=seed + (role == "draft"))


def synthetic_models(pair: PairConfig, seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """A target, and a draft that shares its first layers, embeddings and head.

    The residuals that the target's other layers add are scaled by ``residual_scale``: at 0 both models are the same
    function and every draft is accepted; larger values make them agree less often.
    """
    settings = pair.synthetic
    if settings.residual_scale < 0:
        raise ConfigError(f"pair.synthetic.residual_scale={settings.residual_scale}: it must be 0 or more")
    target = random_model("target", pair, seed, dtype, device)
    layers = target.model.layers
    if not 1 <= settings.draft_layers <= len(layers):
        raise ConfigError(
            f"pair.synthetic.draft_layers={settings.draft_layers}: choose 1 to {len(layers)}, the target's layers"
        )
    with torch.no_grad():
        for layer in layers[settings.draft_layers :]:
            layer.self_attn.o_proj.weight.mul_(settings.residual_scale)
            layer.mlp.down_proj.weight.mul_(settings.residual_scale)
    config = type(target.config).from_dict({**target.config.to_dict(), "num_hidden_layers": settings.draft_layers})
    config._attn_implementation = target.config._attn_implementation
    with torch.device("meta"):
        draft = type(target)(config)
    kept = draft.state_dict().keys()
    draft.load_state_dict({k: v for k, v in target.state_dict().items() if k in kept}, assign=True)
    draft.model.rotary_emb = target.model.rotary_emb  # its buffers are not part of the state
    return target, draft.eval()


def _architecture(role: str, pair: PairConfig) -> dict[str, Any]:
    """The architecture in the settings, or in a local folder's config.json."""
    given: dict[str, Any] | None = getattr(pair, f"{role}_architecture")
    if given is not None:
        return dict(given)
    checkpoint: str = getattr(pair, role) or ""
    folder = local_path(checkpoint)
    if checkpoint and folder.is_dir():
        from transformers import AutoConfig

        return dict(AutoConfig.from_pretrained(folder, local_files_only=True).to_dict())
    raise ConfigError(f"weights=random needs pair.{role}_architecture, or a local folder in pair.{role}")


def _resize(architecture: dict[str, Any], hidden_size: int) -> None:
    """Change the width, keeping the head size and the proportions of heads and MLP."""
    old, heads = architecture["hidden_size"], architecture["num_attention_heads"]
    head_dim = architecture.get("head_dim") or old // heads
    if hidden_size % head_dim:
        raise ConfigError(f"pair.hidden_size={hidden_size}: it must be a multiple of the head size {head_dim}")
    new_heads = hidden_size // head_dim
    kv_heads = architecture.get("num_key_value_heads") or heads
    group = max(1, heads // kv_heads)
    while new_heads % group:
        group -= 1
    architecture.update(
        hidden_size=hidden_size,
        num_attention_heads=new_heads,
        num_key_value_heads=new_heads // group,
        head_dim=head_dim,
        intermediate_size=max(8, round(architecture["intermediate_size"] * hidden_size / old / 8) * 8),
    )


def _build(architecture: dict[str, Any], pair: PairConfig, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type = architecture.pop("model_type")
    config = AutoConfig.for_model(model_type, **architecture)
    check_supported(config, f"pair={pair.name}")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=pair.attention)
    return module.to(device).eval()
