"""The memory of prompts in models with recurrent states: predicted from shapes, and counted while they are read."""

from __future__ import annotations

import pytest
import torch
import transformers

from specdec.alignment.inplace import InplaceAlignment
from specdec.core.clock import Clock
from specdec.models.causal_lm import CausalLM
from specdec.models.live_bytes import LiveBytes, scan_bytes

SIZES = {"vocab_size": 61, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "eos_token_id": None}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "pad_token_id": None}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 32, "mamba_chunk_size": 64}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32}
FAMILIES = {
    "Bamba": {"attn_layer_indices": [1], **MAMBA},
    "Qwen3Next": {"layer_types": ["linear_attention", "full_attention"], **DELTA, **EXPERTS},
    "Jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 16,
        "mamba_dt_rank": 8,
    },
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "Bamba" else pytest.mark.slow) for n in FAMILIES])
def test_what_a_chunked_scan_takes_is_predicted(name):
    """Rows and lengths other than those that the prediction is made from; without it, a part of this was predicted."""
    config = getattr(transformers, f"{name}Config")(**SIZES, **FAMILIES[name])
    model = CausalLM(getattr(transformers, f"{name}ForCausalLM")(config).eval())
    found = scan_bytes(model.module, model.architecture.token_bytes, model.architecture.states.continues)
    rows, length = [0, 1, 2], 384
    alignment = InplaceAlignment(model, Clock())
    alignment.expect(len(rows))
    with LiveBytes() as live:
        alignment.admit(rows, [[5] * length] * len(rows))
    storage = alignment._slots.kv.data_NBHSD.nbytes
    assert found.of(len(rows), length) == pytest.approx(live.peak - storage, rel=0.1)


def test_bytes_are_those_of_tensors_that_exist_at_once():
    with LiveBytes() as live:
        for _ in range(3):
            torch.zeros(1000).add_(1)
        kept = torch.zeros(500)
        del kept
        two = torch.zeros(1000), torch.zeros(1000)
        views = [part[:10] for part in two]
    assert live.peak == 8000
    assert len(views) == 2
