"""Level and power of the audit's tests of sampled outputs, by Monte Carlo on a small random model.

    python experiments/audit/power.py --audits 400 --rows 30 --tokens 12

For each stated setting files of rows are sampled from the law itself (the level: at most the nominal one) and from
laws with one fault each; every file is audited as `python -m specdec.audit` does, at a nominal level of 5% for a file.
Rows start from two prompts in turn. Prints one line per setting and fault: the share of files that are rejected, and by
which tests.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from specdec.audit.forced import Forcing
from specdec.audit.law_tests import all_tests
from specdec.audit.rows import Row
from specdec.audit.sampled import Contexts, SampledRules, statistics_of
from specdec.conformance.models import small_llama
from specdec.core.sampling import processed
from specdec.core.sampling_params import SamplingParams
from specdec.models.causal_lm import CausalLM

LEVEL = 0.05
STATED = {
    "T=1": SamplingParams(1.0),
    "T=0.7": SamplingParams(0.7),
    "T=0.8, top-k 10": SamplingParams(0.8, top_k=10),
    "T=0.9, top-p 0.9": SamplingParams(0.9, top_p=0.9),
    "T=0.7, top-k 20, top-p 0.8": SamplingParams(0.7, top_k=20, top_p=0.8),
}
PROMPTS = [[(7 * i + 3 * j) % 40 for j in range(3 + i)] for i in (0, 4)]
Draw = Callable[[Tensor, int], Tensor]
"""(B, V) logits and the step to the law (B, V) that is sampled from."""


def law_of(params: SamplingParams) -> Draw:
    """The law itself."""
    return lambda logits_BV, step: processed(logits_BV[:, None], [params] * len(logits_BV))[:, 0]


def faults(params: SamplingParams) -> dict[str, Draw]:
    """Laws with one fault each."""
    right = law_of(params)

    def mixed(logits_BV: Tensor, step: int) -> Tensor:
        wrong_BV = law_of(replace(params, temperature=1.0))(logits_BV.roll(1, -1), step)
        return 0.95 * right(logits_BV, step) + 0.05 * wrong_BV

    def first_wrong(logits_BV: Tensor, step: int) -> Tensor:
        return right(logits_BV.roll(1, -1) if step == 0 else logits_BV, step)

    found = {
        "temperature 5% higher": law_of(replace(params, temperature=params.temperature * 1.05)),
        "temperature 15% higher": law_of(replace(params, temperature=params.temperature * 1.15)),
        "1 token in 20 of another law": mixed,
        "first token of another law": first_wrong,
    }
    if params.top_k is not None:
        found["top-k one too many"] = law_of(replace(params, top_k=params.top_k + 1))
        found["top-k half"] = law_of(replace(params, top_k=params.top_k // 2))
    if params.top_p < 1:
        found["top-p ignored"] = law_of(replace(params, top_p=1.0))
        found["top-p 0.05 lower"] = law_of(replace(params, top_p=params.top_p - 0.05))
    return found


@torch.inference_mode()
def sampled(model: CausalLM, draw: Draw, num_rows: int, num_tokens: int, generator: torch.Generator) -> list[Row]:
    """Rows of every prompt in turn; those of one prompt are sampled together."""
    rows = []
    for place, prompt in enumerate(PROMPTS):
        numbers = range(place, num_rows, len(PROMPTS))
        tokens = torch.tensor([prompt] * len(numbers))
        for step in range(num_tokens):
            law_BV = draw(model.module(tokens).logits[:, -1], step)
            tokens = torch.cat([tokens, torch.multinomial(law_BV, 1, generator=generator)], 1)
        rows += [Row(n, str(n), prompt, row[len(prompt) :].tolist()) for n, row in zip(numbers, tokens, strict=True)]
    return rows


def rejections(
    model: CausalLM, forcing: Forcing, params: SamplingParams, draw: Draw, num_audits: int, given: argparse.Namespace
) -> tuple[int, Counter[str]]:
    """How many files are rejected, and by which tests."""
    generator = torch.Generator().manual_seed(given.seed)
    num_rejected, by = 0, Counter[str]()
    for number in range(num_audits):
        rows = sampled(model, draw, given.rows, given.tokens, generator)
        contexts, rules = Contexts.of(rows), SampledRules(params, 2.0, seed=number)
        tests = all_tests([statistics_of(row, forcing, rules, contexts) for row in rows])
        rejecting = [test.name for test in tests if test.p_value <= LEVEL / len(tests)]
        num_rejected += bool(rejecting)
        by.update(rejecting)
    return num_rejected, by


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", type=int, default=400, help="files of the law itself")
    parser.add_argument("--power-audits", type=int, default=100, help="files of every fault")
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    model = CausalLM(small_llama(0, torch.float32, layers=2))
    forcing = Forcing(model, 2, 2)
    print(f"Files of {given.rows} rows of {given.tokens} tokens; nominal level of a file {LEVEL:.0%}.\n")
    print("| stated | sampled from | rejected | by |\n| --- | --- | --- | --- |")
    for name, params in STATED.items():
        for fault, draw in {"the law itself": law_of(params), **faults(params)}.items():
            number = given.audits if fault == "the law itself" else given.power_audits
            count, by = rejections(model, forcing, params, draw, number, given)
            shown = ", ".join(f"{test} {times}" for test, times in by.most_common())
            print(f"| {name} | {fault} | {count} of {number} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
