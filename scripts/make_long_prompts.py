"""Write long prompts, in Spec-Bench's schema, from the sources and docstrings of this Python's standard library.

    python scripts/make_long_prompts.py --tokenizer FOLDER --out long.jsonl
    python run.py data=jsonl data.path=long.jsonl drafter=model drafter.window=512

Three tasks, as many prompts of each for every length: *summarise* the documents of some modules, *find* the description
of one function among those of many, and *continue* a source file. A prompt has at most so many tokens of the given
tokenizer as its length says, and at most 32 fewer. The same seed, tokenizer and Python version give the same file.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

SLACK = 32  # tokens that a prompt may be shorter than its length
TASKS = ("summarise", "find", "continue")


def main() -> None:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tokenizer", required=True, help="a folder or a name on the Hub")
    arguments.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    arguments.add_argument("--lengths", default="1024,2048,4096,8192", help="tokens of a prompt")
    arguments.add_argument("--per-task", type=int, default=4, help="prompts of each task and length")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    from transformers import AutoTokenizer

    lengths = [int(length) for length in given.lengths.split(",")]
    if min(lengths) < 4 * SLACK or given.per_task < 1:
        sys.exit(f"make_long_prompts: --lengths must be at least {4 * SLACK}, --per-task at least 1")
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    lines = list(prompts(tokenizer, lengths, given.per_task, given.seed))
    given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"written: {given.out}, {len(lines)} prompts of the standard library of Python {sys.version.split()[0]}")


def prompts(tokenizer: Any, lengths: list[int], per_task: int, seed: int) -> Iterator[dict[str, Any]]:
    """The lines: ``question_id``, ``category`` (task and length) and ``turns``."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in library.glob("*.py") if path.stat().st_size > 2000)
    makers: dict[str, Callable[[list[Path], Cut], str]] = {
        "summarise": summarise,
        "find": find,
        "continue": continued,
    }
    for length in lengths:
        for task in TASKS:
            for number in range(per_task):
                rng = random.Random(f"{seed} {task} {length} {number}")
                text = makers[task](rng.sample(files, len(files)), Cut(tokenizer, length, rng))
                yield {"question_id": f"{task}-{length}-{number}", "category": f"{task} {length}", "turns": [text]}


class Cut:
    """Cuts the long part of a prompt so that all of it has the wanted number of tokens."""

    def __init__(self, tokenizer: Any, length: int, rng: random.Random) -> None:
        self.length, self.rng = length, rng
        self._tokenizer = tokenizer

    def __call__(self, before: str, text: str, after: str) -> str:
        """The parts joined; ``text`` is cut at its end.

        Raises:
            ValueError: it is too short for the length.
        """
        ids = self._encoded(text[: 8 * self.length])
        room = self.length - len(self._encoded(before + after))
        while room > 0:
            whole = before + self._tokenizer.decode(ids[:room]) + after
            excess = len(self._encoded(whole)) - self.length
            if excess <= 0:
                if excess < -SLACK:
                    break
                return whole
            room -= excess
        raise ValueError(f"the text has too few tokens for a prompt of {self.length}")

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


def documented(path: Path) -> list[tuple[str, str]]:
    """Names of the functions, classes and methods of a source file, with their docstrings, in the order of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [(path.stem, ast.get_docstring(tree) or "")]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append((f"{path.stem}.{node.name}", ast.get_docstring(node) or ""))
    return [(name, text) for name, text in found if len(text) > 40]


def entries(files: list[Path], num_tokens: int) -> list[tuple[str, str]]:
    """Documented names of as many files as make more than so many tokens, of up to eight letters each."""
    found: list[tuple[str, str]] = []
    for path in files:
        found += documented(path)
        if sum(len(text) for _, text in found) > 8 * num_tokens:
            break
    return found


def summarise(files: list[Path], cut: Cut) -> str:
    """The docstrings of modules, and the request for a summary."""
    text = "\n\n".join(f"{name}\n{text}" for name, text in entries(files, cut.length))
    return cut("Here is a part of a manual.\n\n", text, "\n\nSummarise the manual in five sentences.")


def find(files: list[Path], cut: Cut) -> str:
    """Entries of a manual, one of which, at any depth, is asked for."""
    known = entries(files, cut.length)
    name, wanted = next(entry for entry in known if len(entry[1]) < 400)
    others = [f"{other}\n{text}" for other, text in known if other != name]
    before, after = "Here is a part of a manual.\n\n", f"\n\nCopy the entry of {name} from the manual, word for word."
    whole = cut(before, "\n\n".join(others), f"{name}\n{wanted}{after}")
    ends = accumulate(len(other) + 2 for other in others)
    fitting = sum(end <= len(whole) - len(before + name + wanted + after) for end in ends)
    place = cut.rng.randint(0, fitting)
    return cut(before, "\n\n".join([*others[:place], f"{name}\n{wanted}", *others[place:]]), after)


def continued(files: list[Path], cut: Cut) -> str:
    """A source file without its end, or several."""
    text = ""
    for path in files:
        text += f"# {path.name}\n{path.read_text(encoding='utf-8')}\n\n"
        if len(text) > 8 * cut.length:
            break
    return cut("", text, "")


if __name__ == "__main__":
    main()
