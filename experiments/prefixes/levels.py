"""Two levels of shared first tokens against one and none: tokens/s, memory, and equal tokens.

    python experiments/prefixes/levels.py --rows 16 --prefix 1000 --groups 4 --more 1000

All prompts begin with one prefix, those of a group with the same further tokens, and end with 16 to 48 tokens of their
own. One level holds the first two parts once per group. Only the run with two levels computes the prompts; the others
get copies of its keys and values. Rounds of the three runs take turns, as in `measure.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from unittest.mock import patch

import torch
from measure import BLOCKS, SHAPE, Run, interval, make_model

from specdec.alignment import prefixes
from specdec.alignment.inplace import InplaceAlignment
from specdec.alignment.own_columns import OwnColumns
from specdec.alignment.prefix_tree import Ids, shared_parts
from specdec.models.kv import KVStorage
from specdec.models.shared import SharedColumns


@dataclass(frozen=True, slots=True)
class CopiedColumns(OwnColumns):
    """Parts of prompts that another alignment has computed."""

    source: InplaceAlignment
    prompts: list[list[int]]

    def computed(self, tokens: list[int], after: SharedColumns | None) -> KVStorage:
        """The columns of the first prompt that has these tokens."""
        start = 0 if after is None else int(after.lengths_B[0])
        row = next(i for i, ids in enumerate(self.prompts) if ids[start : start + len(tokens)] == tokens)
        data_N1HSD = self.source.content(row)[:, None, :, start : start + len(tokens)].contiguous()
        return KVStorage(data_N1HSD, len(tokens), self.slots.kv.shapes)


def deepest(contents: list[Ids], held: list[int], least: int) -> list[tuple[list[int], int]]:
    """Groups that no group lies below: one level."""
    groups = shared_parts(contents, held, least)
    return [one for one in groups if not any(set(other[0]) < set(one[0]) for other in groups)]


def main() -> None:
    """Print a line per way to share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 16), ("prefix", 1000), ("groups", 4), ("more", 1000), ("tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--execution", default="native")
    options = parser.parse_args()
    model = make_model(options.execution, "cpu", torch.float32)
    generator = torch.Generator().manual_seed(options.prefix)

    def ids(count: int) -> list[int]:
        return [int(i) for i in torch.randint(0, SHAPE["vocab_size"], (count,), generator=generator)]

    prefix, groups = ids(options.prefix), [ids(options.more) for _ in range(options.groups)]
    prompts = [[*prefix, *groups[b % len(groups)], *ids(16 + 32 * b // options.rows)] for b in range(options.rows)]
    two, one, none = (Run(model, prompts, options.tokens, 0, shared) for shared in (True, True, False))
    print(f"seconds to the first tokens: {two.step():.1f}", flush=True)
    columns = one.target._prefixes._columns
    one.target._prefixes._columns = CopiedColumns(columns.slots, columns.contents, two.target, prompts)
    one.target._prefixes._tree.least = options.prefix + options.more  # no part of a part
    none.target.source = two.target
    with patch.object(prefixes, "shared_parts", deepest):
        one.step()
    none.step()
    runs, seconds = (none, one, two), [list[float](), list[float](), list[float]()]
    while not two.pool.done:  # all emit the same tokens, so they end together
        first = len(seconds[0]) % 3
        for way in (0, 1, 2, 0, 1)[first : first + 3]:
            seconds[way].append(runs[way].step())
    count = len(seconds[0])
    blocks = [slice(i * count // BLOCKS, (i + 1) * count // BLOCKS) for i in range(BLOCKS)]
    print("| levels | tokens/s | against none | against one | MB | columns shared | rows equal |")
    print("|---|---|---|---|---|---|---|")
    for level, run in enumerate(runs):
        ratios = [interval([sum(other[b]) / sum(seconds[level][b]) for b in blocks]) for other in seconds[:2]]
        equal = sum(a.output_ids == b.output_ids for a, b in zip(run.rows, none.rows, strict=True))
        rate = options.rows * count / sum(seconds[level])
        shared = run.target._prefixes.num_columns
        cells = [level, f"{rate:.1f}", *ratios, f"{run.num_bytes / 1e6:.0f}", shared, f"{equal} of {options.rows}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
