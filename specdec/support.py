"""Whether a model can be run on an aligned batch: asked of the model itself, on a few tokens, before anything else.

An architecture that ignores positions or masks, keeps a state of another shape, or takes other arguments would give
wrong tokens or a stranger's traceback in the middle of a run. Lists of names grow old; the question does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdec.errors import PairError
from specdec.model import CausalLM, check_supported

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest difference of a logit from the model's own, as a share of the largest logit."""
NUM_TOKENS, NUM_PADS = 6, 3


def supported(module: Any, name: str) -> CausalLM:
    """The model, made ready for alignment.

    Raises:
        PairError: it cannot be; the message names the model and the reason.
    """
    check_supported(module.config, name)
    described = f"{name} ({module.config.get_text_config().model_type})"
    config = module.config.get_text_config()
    if getattr(config, "alibi", False) or not hasattr(config, "max_position_embeddings"):
        raise PairError(
            f"{described} takes no position ids: its attention biases (ALiBi) come from the columns of a 2-D mask, "
            "which are no positions in a batch whose rows advance unevenly"
        )
    try:
        model = CausalLM(module)
        alone_V, aligned_BV = _alone(model), _aligned(model)
    except Exception as error:  # whatever an architecture raises when it is called in a way it does not know
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise PairError(
            f"{described} cannot be run on an aligned batch, which needs explicit positions, a 4-D mask and a cache "
            f"that is written in place: {type(error).__name__}: {reason}"
        ) from error
    difference = float((aligned_BV - alone_V).abs().max() / alone_V.abs().max().clamp(min=1e-6))
    if not difference <= TOLERANCE[model.dtype]:
        raise PairError(
            f"{described} does not follow explicit positions and masks: behind padding its logits differ by "
            f"{difference:.0%} from those of the row alone; speculative decoding in batches would be wrong"
        )
    return model


def _tokens(model: CausalLM) -> list[int]:
    return [(7 * i + 1) % model.vocab_size for i in range(NUM_TOKENS)]


@torch.inference_mode()
def _alone(model: CausalLM) -> Tensor:
    """The last token's logits, as `transformers` itself computes them."""
    logits: Tensor = model.module(torch.tensor([_tokens(model)], device=model.device), use_cache=False).logits
    return logits[0, -1]


@torch.inference_mode()
def _aligned(model: CausalLM) -> Tensor:
    """The same (B, V) in two rows of a batch, one of them behind padding, the last two tokens over the cache."""
    starts_B1 = torch.tensor([[NUM_PADS], [0]], device=model.device)
    columns_S = torch.arange(NUM_PADS + NUM_TOKENS, device=model.device)
    tokens_S = torch.tensor(_tokens(model), device=model.device)
    tokens_BS = tokens_S[(columns_S - starts_B1).clamp(min=0, max=NUM_TOKENS - 1)]
    positions_BS = (columns_S - starts_B1).clamp(min=0)
    mask_BSS = (columns_S <= columns_S[:, None]) & (columns_S >= starts_B1)[:, None]
    mask_BSS |= torch.eye(len(columns_S), dtype=torch.bool, device=model.device)
    kv, logits = model.empty_storage(2, len(columns_S)), []
    for start, stop in ((0, len(columns_S) - 2), (len(columns_S) - 2, len(columns_S))):
        fed = slice(start, stop)
        mask_BTS = mask_BSS[:, fed, :stop]
        logits.append(model.forward(tokens_BS[:, fed], positions_BS[:, fed], mask_BTS, kv.append(stop - start)))
    logits_BSV = torch.cat(logits, dim=1)
    return torch.stack([logits_BSV[0, -1], logits_BSV[1, NUM_TOKENS - 1]])
