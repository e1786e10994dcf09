"""The model card, written from the provenance record, so that no figure is typed by hand."""

from __future__ import annotations

from typing import Any

_CARD = """\
# Pair `tiny`

A Llama-architecture target and draft with their own byte-level BPE tokenizer, small enough to ship with the
package and to be decoded on any CPU. It exists for tests, examples and studies of batched speculative
decoding; as a language model it is a toy that continues Python source, badly.

| | target | draft |
|---|---|---|
| layers x hidden (intermediate) | {target_shape} | {draft_shape} |
| heads / key-value heads | {target_heads} | {draft_heads} |
| parameters | {target_parameters:,} | {draft_parameters:,} |
| step, batch 1, 1 thread, float32 | {target_ms} ms | {draft_ms} ms ({ratio} of the target's) |

Vocabulary {vocab_size}, context {context_length} tokens, `<|endoftext|>` begins and ends texts, `<|pad|>`
is a token of its own. Weights are stored as bfloat16 ({megabytes:.1f} MB in all) and meant to be loaded as
float32. No chat template.

## Data and licence
The sources of the standard library of Python {python}: {num_train} files, {num_train_tokens:,} tokens for
training; {num_heldout} files are held out by a hash of their path and `heldout.jsonl` is cut from those
alone. The sources are under the Python Software Foundation License 2.0 (PSF-2.0), copyright Python Software
Foundation; some modules carry further notices in their heads. The held-out prompts quote them and stay
under those terms.

## Recipe
`python train.py pair=tiny` rebuilds everything (add `export_dir=specdec/assets/tiny` to replace this
folder). Bit-equal weights are not promised: thread counts and the clock enter.
1. Target: next-token loss on the files, {target_steps} steps, {target_tokens:,} tokens, {target_wall_s:.0f}
   s; held-out loss {target_loss} nats per token. Rounded to bfloat16 before anything else looks at it.
2. Greedy outputs: {greedy_rows:,} prompts from training files, {greedy_tokens:,} output tokens of the
   target.
3. Draft: begins from the target's embedding and first and last layers; {warm_tokens:,} tokens of corpus
   text under the target's distribution, then {draft_tokens:,} tokens of the greedy outputs (cross-entropy
   on the greedy token and forward KL in equal parts unless the config says otherwise).

## Reached
Greedy, gamma {gamma}, {new_tokens} new tokens, {num_prompts} held-out prompts: **acceptance rate
{acceptance_rate:.3f}** (accepted / drafted), mean acceptance length {mean_acceptance_length:.2f}.

| category | acceptance rate | mean acceptance length |
|---|---|---|
{rows}

Everything else (hashes, versions, seeds, losses, settings) is in `provenance.json`.
"""


def model_card(record: dict[str, Any]) -> str:
    """Markdown text of the card."""
    stages, data, config = record["stages"], record["data"], record["config"]
    acceptance, times = record["acceptance"], record["step_times"]["batch_1"]
    fields = {f"{role}_{key}": value for role in ("target", "draft") for key, value in _shape(config, role).items()}
    return _CARD.format(
        **fields,
        **times,
        **{name: acceptance[name] for name in ("gamma", "new_tokens", "num_prompts")},
        **{name: acceptance[name] for name in ("acceptance_rate", "mean_acceptance_length")},
        rows="\n".join(category_rows(acceptance)),
        target_parameters=stages["target"]["parameters"],
        draft_parameters=stages["draft"]["parameters"],
        vocab_size=config["vocab_size"],
        context_length=config["context_length"],
        megabytes=record["safetensors_bytes"] / 1e6,
        python=data["python"],
        num_train=data["train"]["files"],
        num_train_tokens=data["train"]["tokens"],
        num_heldout=data["heldout"]["files"],
        target_steps=stages["target"]["steps"],
        target_tokens=stages["target"]["tokens"],
        target_wall_s=stages["target"]["wall_s"],
        target_loss=stages["target"]["heldout_loss"],
        greedy_rows=stages["greedy"]["rows"],
        greedy_tokens=stages["greedy"]["output_tokens"],
        warm_tokens=stages["warm"]["tokens"],
        draft_tokens=stages["draft"]["tokens"],
    )


def _shape(config: dict[str, Any], role: str) -> dict[str, str]:
    model = config[f"{role}_model"]
    return {
        "shape": f"{model['num_layers']} x {model['hidden_size']} ({model['intermediate_size']})",
        "heads": f"{model['num_heads']} / {model['num_kv_heads']}",
    }


_TRAINED = """\
# {title}

Made by `python train.py task={task}` beside the frozen target `{frozen}`. {use}

## Data
{data}

## Recipe
{steps} steps, {tokens:,} tokens, {wall_s:.0f} s, seed {seed}; learned from {learned}. Weights are stored as bfloat16.

## Reached
Greedy, gamma {gamma}, {new_tokens} new tokens, {num_prompts} held-out prompts: **acceptance rate
{acceptance_rate:.3f}** (accepted / drafted), mean acceptance length {mean_acceptance_length:.2f}; per place in the
draft, of what was drafted there: {places}.

| category | acceptance rate | mean acceptance length |
|---|---|---|
{rows}

Everything else (hashes, versions, settings, losses) is in `provenance.json`.
"""


def trained_card(record: dict[str, Any], title: str, use: str, learned: str) -> str:
    """Markdown text of the card of a draft, or of what is trained beside a target."""
    acceptance, fit, data, config = record["acceptance"], record["stages"]["fit"], record["data"], record["config"]
    names = ("gamma", "new_tokens", "num_prompts", "acceptance_rate", "mean_acceptance_length")
    license = f" ({data['license']})" if data["license"] else ""
    return _TRAINED.format(
        title=title,
        use=use,
        learned=learned,
        task=config["task"],
        frozen=config["frozen"],
        seed=config["seed"],
        data=f"{data['source']}{license}: {data['num_train']:,} documents, {data['num_heldout']:,} held out by hash.",
        steps=fit["steps"],
        tokens=fit["tokens"],
        wall_s=fit["wall_s"],
        places=", ".join(f"{rate:.2f}" for rate in acceptance["acceptance_by_place"]),
        rows="\n".join(category_rows(acceptance)),
        **{name: acceptance[name] or 0.0 for name in names},
    )


def category_rows(acceptance: dict[str, Any]) -> list[str]:
    """Rows of the acceptance table."""
    return [
        f"| {name} | {part['acceptance_rate'] or 0.0:.3f} | {part['mean_acceptance_length'] or 0.0:.2f} |"
        for name, part in acceptance["categories"].items()
    ]
