"""Write tests/data/heads/zlab_*.json: what the authors' own DFlash computes, for tests of their layout.

It runs in the environment of make_head_vectors.py, with the authors' package beside it:

    /tmp/speculators/bin/pip install --no-deps dflash==0.1.0
    /tmp/speculators/bin/python scripts/make_dflash_vectors.py
"""

from __future__ import annotations

import torch
from dflash import DFlashDraftModel
from make_head_vectors import BLOCK, LAYERS, LENGTH, SIZE, SIZES, VOCAB, fill, numbers, rounded, text, write
from transformers import Qwen3Config

MASK = 9


def block(name: str, layer_types: list[str], dflash_config: dict[str, object], **settings: object) -> None:
    """Blocks after every anchor from 1 on, each with the hidden states before its anchor."""
    config = Qwen3Config(num_hidden_layers=len(layer_types), layer_types=layer_types, **SIZES, **settings)
    config.architectures = ["DFlashDraftModel"]
    config.num_target_layers = 4
    config.dflash_config = {"target_layer_ids": [number - 1 for number in LAYERS[:1] + LAYERS[2:]], **dflash_config}
    model = DFlashDraftModel(config).eval()
    fill(model, None)
    head = torch.nn.Linear(SIZE, VOCAB, bias=False)
    hidden = numbers("hidden", (LENGTH + 1, 2 * SIZE), 2.0)[None]
    scale = float(dflash_config.get("input_embedding_scale", 1.0))
    anchors, logits = list(range(1, LENGTH + 1 - BLOCK)), []
    with torch.no_grad():
        head.weight.copy_(numbers("lm_head.weight", (VOCAB, SIZE), 0.4))
        for anchor in anchors:
            ids = torch.tensor([int(text()[anchor]), *[MASK] * (BLOCK - 1)])
            states = model(
                position_ids=torch.arange(anchor + BLOCK)[None],
                noise_embedding=(numbers("embed_tokens.weight", (VOCAB, SIZE), 0.4) * scale)[ids][None],
                target_hidden=hidden[:, :anchor],
            )
            logits.append(model.compute_logits(states, head)[0])
    write(name, model, {"anchors": anchors, "logits": rounded(torch.stack(logits))})


def main() -> None:
    full, sliding = "full_attention", "sliding_attention"
    own = {"mask_token_id": MASK}
    block("zlab_dflash", [full, full], own, block_size=BLOCK)
    own |= {"block_size": BLOCK, "input_embedding_scale": 2.0, "output_multiplier": 0.5, "final_logit_softcapping": 3.0}
    block("zlab_windows", [sliding, full], own, sliding_window=3, use_sliding_window=True)
    block("zlab_two_sided", [sliding, full], own, sliding_window=3, use_sliding_window=True, is_causal=False)


if __name__ == "__main__":
    main()
