"""Temperature 0: every verifier on every tree gives the target's own tokens, all alignments, batch 1, 4 and 8.

    python experiments/trees/greedy.py                        # the built-in held-out prompts
    python experiments/trees/greedy.py --prompts FILE.jsonl   # for example Spec-Bench: lines with "turns"

Each tree decodes all prompts. They are dealt to the verifiers, so that every verifier judges every tree; alignments
and batch sizes take turns, so that every one meets every tree, and every alignment every verifier. All verifiers keep
the longest match: what differs is the code around it. Expected are the tokens of `transformers`' own `generate`.
"""

from __future__ import annotations

import argparse
from collections import Counter

from decoding import configured, engine_of, make_rows, read_prompts, rounds

from specdec.core.sequence import Sequence
from specdec.core.tables import markdown, text_table
from specdec.models.pair import load_pair
from specdec.registry import lookup, names
from specdec.run.reference_outputs import generate_alone

TREES = {
    "chain": [],
    "paths": ["tree.num_paths=3"],
    "delayed": ["tree.num_paths=3", "tree.trunk=1"],
    "gumbel": ["tree.branches=[3,2,1,1]"],
    "beam": ["tree.width=4"],
    "confidence": ["tree.num_nodes=12"],
    "static": ["tree.num_nodes=12"],
}
ALIGNMENTS = ("inplace", "eqspec", "masked", "rollback", "expansion")
BATCHES = (8, 1, 4)


def main() -> int:
    """Decode, compare, print; 1 if any row differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", help="JSON lines; by default the built-in prompts")
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--prompt-tokens", type=int, default=48, help="prompts are cut to so many")
    parser.add_argument("--first", type=int, help="take the first prompts only")
    given = parser.parse_args()
    pair = load_pair(configured("pair=tiny"))
    prompts = read_prompts(pair.tokenizer, given.prompts, given.prompt_tokens)[: given.first]
    expected = [Sequence(i, ids, given.new_tokens) for i, ids in enumerate(prompts)]
    for row in expected:
        generate_alone(pair.target.module, row)
    verifiers = [name for name in names("verifier") if not (lookup("verifier", name).lossy or name == "dsd")]
    met: dict[str, Counter[str]] = {tree: Counter() for tree in TREES}
    wrong = 0
    for t, (tree, settings) in enumerate(TREES.items()):
        for v, verifier in enumerate(verifiers):
            alignment, batch = ALIGNMENTS[(v + t) % len(ALIGNMENTS)], BATCHES[(v + t) % len(BATCHES)]
            parts = [f"tree={tree}", *settings, f"verifier={verifier}", f"alignment={alignment}", f"batch={batch}"]
            config = configured("pair=tiny", "temperature=0", "gamma=4", *parts)
            mine = range(v, len(prompts), len(verifiers))
            rows = make_rows(config, [prompts[i] for i in mine], given.new_tokens)
            nodes = sum(sum(outcome.num_drafted) for outcome, _ in rounds(engine_of(config, pair), rows))
            differ = [i for i, row in zip(mine, rows, strict=True) if row.output_ids != expected[i].output_ids]
            if differ:
                print(f"{' '.join(parts)}: prompts {differ} differ")
            wrong += len(differ)
            met[tree].update({"rows": len(rows), "exact": len(rows) - len(differ), "nodes": nodes})
            met[tree].update([f"alignment {alignment}", f"batch {batch}", f"verifier {verifier}"])
        print(f"[{tree}: {met[tree]['exact']}/{met[tree]['rows']}]", flush=True)
    head = ["tree", "exact", "nodes drafted", "verifiers", "alignments", "batch sizes"]
    kinds = ("verifier ", "alignment ", "batch ")
    cells = [
        [tree, f"{seen['exact']}/{seen['rows']}", str(seen["nodes"])]
        + [str(sum(key.startswith(kind) for key in seen)) for kind in kinds]
        for tree, seen in met.items()
    ]
    execution = pair.target.execution.name
    print(f"\nexecution={execution}, {given.new_tokens} tokens per row\n{markdown(text_table(head, cells))}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
