"""Write tests/data/heads/*.json: what the models of the package `speculators` compute, for tests of our loaders.

It needs an environment of its own, because speculators wants other versions than this project:

    python -m venv /tmp/speculators
    /tmp/speculators/bin/pip install "torch>=2.11,<2.14" speculators==0.9.0 transformers==5.19.0
    /tmp/speculators/bin/python scripts/make_head_vectors.py

A file holds a head's config.json as speculators writes it, the names and shapes of its tensors, and logits. The weights
and inputs are not stored: both sides make them with `numbers`.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.models.dflash import core as dflash
from speculators.models.dflash.config import DFlashSpeculatorConfig
from speculators.models.dspark import core as dspark
from speculators.models.dspark.config import DSparkSpeculatorConfig
from speculators.models.eagle3.config import Eagle3SpeculatorConfig
from speculators.models.eagle3.core import Eagle3DraftModel
from speculators.models.mtp.config import MTPSpeculatorConfig
from speculators.models.mtp.core import MTPDraftModel
from speculators.models.peagle import core as peagle
from speculators.models.peagle.config import PEagleSpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, Qwen3Config

OUT = Path(__file__).parent.parent / "tests" / "data" / "heads"
VOCAB, SIZE, LENGTH, NUM_STEPS, BLOCK = 31, 16, 8, 3, 4
LAYERS = [2, 0, 3]  # of a target of 4 layers; not in order
SIZES = {
    "hidden_size": SIZE,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}


def numbers(name: str, shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
    """The same float32 numbers for a name everywhere."""
    count = math.prod(shape)
    phase = zlib.crc32(name.encode()) % 1000
    values = [math.sin(phase + 12.9898 * i + 0.07 * i * i) for i in range(count)]
    return (scale * torch.tensor(values, dtype=torch.float64)).float().view(shape)


def text() -> torch.Tensor:
    return torch.tensor([(7 * i * i + 3 * i + 5) % VOCAB for i in range(LENGTH + 1)])


def fill(model: torch.nn.Module, drafted: int | None) -> None:
    """Weights by `numbers`; norms around 1; every third token and a few more can be drafted."""
    ids = sorted({*range(0, VOCAB, 2), *range(1, VOCAB, 6)})[:drafted] if drafted else list(range(VOCAB))
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name == "d2t":
                value.copy_(torch.tensor(ids) - torch.arange(len(ids)))
            elif name == "t2d":
                value.copy_(torch.isin(torch.arange(VOCAB), torch.tensor(ids)))
            elif "norm" in name:
                value.copy_(1 + numbers(name, tuple(value.shape), 0.3))
            else:
                value.copy_(numbers(name, tuple(value.shape), 0.4))


def speculators_config(algorithm: str) -> SpeculatorsConfig:
    return SpeculatorsConfig(
        algorithm=algorithm,
        proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=NUM_STEPS)],
        default_proposal_method="greedy",
        verifier=VerifierConfig(name_or_path=None, architectures=["LlamaForCausalLM"]),
    )


def write(name: str, model: torch.nn.Module, expected: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        saved = load_file(Path(folder) / "model.safetensors")
    tensors = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in saved.items()}
    ints = {key: value.int().tolist() for key, value in saved.items() if not value.is_floating_point()}
    OUT.mkdir(parents=True, exist_ok=True)
    document = {"config": config, "tensors": tensors, "integers": ints, **expected}
    (OUT / f"{name}.json").write_text(json.dumps(document) + "\n")
    print(name, len(saved), "tensors,", (OUT / f"{name}.json").stat().st_size, "bytes", file=sys.stderr)


def rounded(values: torch.Tensor) -> list:
    return [[[float(f"{x:.7g}") for x in row] for row in part] for part in values.tolist()]


def layer_config(kind: str, layers: int, windows: tuple[str, ...] | None = None):
    """``windows``: the kind of each layer's attention, with windows of three positions."""
    config = (LlamaConfig if kind == "llama" else Qwen3Config)(num_hidden_layers=layers, **SIZES)
    if windows:
        config.layer_types, config.sliding_window = list(windows), 3
    config._attn_implementation = "eager"
    return config


def eagle3(name: str, kind: str, layers: int, drafted: int | None, windows=None, **flags: bool) -> None:
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=layer_config(kind, layers, windows),
        draft_vocab_size=drafted or VOCAB,
        eagle_aux_hidden_state_layer_ids=LAYERS,
        speculators_config=speculators_config("eagle3"),
        **flags,
    )
    model = Eagle3DraftModel(config).eval()
    fill(model, drafted)
    logits: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: logits.append(output[0].detach()))
    with torch.no_grad():
        model(
            hidden_states=numbers("hidden", (LENGTH, 3 * SIZE), 2.0)[None],
            input_ids=text()[None, 1:],
            document_ids=torch.zeros(1, LENGTH, dtype=torch.long),
            ttt_steps=NUM_STEPS,
        )
    write(name, model, {"logits": rounded(torch.stack(logits))})


def parallel_eagle() -> None:
    config = PEagleSpeculatorConfig(
        transformer_layer_config=layer_config("llama", 2),
        draft_vocab_size=18,
        eagle_aux_hidden_state_layer_ids=LAYERS,
        mask_token_id=9,
        speculators_config=speculators_config("peagle"),
    )
    model = peagle.PEagleDraftModel(config).eval()
    fill(model, 18)
    # Every entry begins a group: depth 0 of all of them, then depth 1, and so on.
    anchors = torch.arange(LENGTH).repeat(NUM_STEPS)
    depths = torch.arange(NUM_STEPS).repeat_interleave(LENGTH)
    inside = anchors + depths < LENGTH
    anchors, depths = anchors[inside], depths[inside]
    peagle.generate_cod_sample_indices = lambda **_: (anchors, depths)
    peagle.compute_metrics = lambda **_: (torch.zeros(()), {})  # its losses need a GPU
    logits: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: logits.append(output[0].detach()))
    with torch.no_grad():
        model(
            hidden_states=numbers("hidden", (LENGTH, 3 * SIZE), 2.0)[None],
            input_ids=text()[None, 1:],
            document_ids=torch.zeros(1, LENGTH, dtype=torch.long),
            loss_mask=torch.ones(1, LENGTH),
            verifier_last_hidden_states=torch.zeros(1, LENGTH, SIZE),
            num_depths=NUM_STEPS,
        )
    steps = torch.full((NUM_STEPS, LENGTH, 18), math.nan)
    steps[depths, anchors] = logits[0]
    write("peagle", model, {"logits": rounded(steps.nan_to_num(0.0))})


def block(
    name: str, core, kind: type, config_class: type, drafted: int | None, windows=None, file="", **flags: object
) -> None:
    """Blocks after every anchor from 1 on; the text is one document."""
    config = config_class(
        transformer_layer_config=layer_config("qwen3", 2, windows),
        draft_vocab_size=drafted or VOCAB,
        block_size=BLOCK,
        aux_hidden_state_layer_ids=LAYERS,
        mask_token_id=9,
        speculators_config=speculators_config(name),
        **flags,
    )
    model = kind(config).eval()
    fill(model, drafted)
    anchors = torch.arange(1, LENGTH + 1 - BLOCK)
    dflash.select_anchors = lambda *_: (anchors, torch.ones(len(anchors), dtype=torch.bool))
    seen: dict[str, torch.Tensor] = {}

    def keep(logits, targets, *rest, **named):
        seen["logits"] = logits[0].detach()
        if name == "dspark":
            seen["confidence"] = rest[0][0].detach()
        return torch.zeros(()), {}

    core.compute_metrics = keep
    with torch.no_grad():
        model(
            hidden_states=numbers("hidden", (LENGTH + 1, 3 * SIZE), 2.0)[None],
            input_ids=text()[None],
            loss_mask=torch.ones(1, LENGTH + 1),
            verifier_last_hidden_states=torch.zeros(1, LENGTH + 1, SIZE),
            document_ids=torch.zeros(1, LENGTH + 1, dtype=torch.long),
            max_anchors=len(anchors),
        )
    expected = {"anchors": anchors.tolist(), "logits": rounded(seen["logits"].view(len(anchors), BLOCK, -1))}
    if "confidence" in seen:
        expected["confidence"] = rounded(seen["confidence"].view(1, len(anchors), BLOCK))[0]
    write(file or name, model, expected)


def mtp() -> None:
    config = MTPSpeculatorConfig(
        transformer_layer_config=layer_config("qwen3", 1), speculators_config=speculators_config("mtp")
    )
    model = MTPDraftModel(config).eval()
    fill(model, None)
    with torch.no_grad():
        logits, _, _ = model(
            input_ids=text()[None], hidden_states=numbers("hidden", (LENGTH + 1, SIZE), 2.0)[None], loss_mask=None
        )
    write("mtp", model, {"logits": rounded(torch.cat(logits))})


def main() -> None:
    eagle3("eagle3", "llama", 1, 18)
    eagle3("eagle31", "qwen3", 2, None, fc_norm=True, norm_output=True, norm_before_residual=True)
    eagle3("eagle3_windows", "qwen3", 2, None, ("full_attention", "sliding_attention"))
    parallel_eagle()
    block("dflash", dflash, dflash.DFlashDraftModel, DFlashSpeculatorConfig, 18)
    flags = {"windows": ("sliding_attention", "full_attention")}
    block("dflash", dflash, dflash.DFlashDraftModel, DFlashSpeculatorConfig, None, file="dflash_windows", **flags)
    flags["sliding_window_non_causal"] = True
    block("dflash", dflash, dflash.DFlashDraftModel, DFlashSpeculatorConfig, None, file="dflash_two_sided", **flags)
    block("dspark", dspark, dspark.DSparkDraftModel, DSparkSpeculatorConfig, None, markov_rank=4)
    for variant in ("gated", "rnn"):
        flags = {"markov_rank": 4, "markov_head_type": variant, "file": f"dspark_{variant}"}
        block("dspark", dspark, dspark.DSparkDraftModel, DSparkSpeculatorConfig, 18, **flags)
    mtp()


if __name__ == "__main__":
    main()
