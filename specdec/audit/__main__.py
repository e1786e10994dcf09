"""Judge an engine's outputs by the target alone: `python -m specdec.audit outputs.jsonl --target FOLDER`.

Exit code 0: every row is exact or a near-tie, or no test rejects; 1: failures; 2: the file or a setting is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from specdec.config.explain import explain
from specdec.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16", "float64")
_FORM = """a line of the file:
  {"prompt_ids": [...], "output_ids": [...]}        or "prompt" and "output" as text; optional: "logprobs" of the
  emitted tokens, "id"
Text is tokenised by --tokenizer. Only greedy rows may give their output as text; its tokens are taken to be the
target's own as long as the text agrees with them. docs/audit.md explains the criteria and tests."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m specdec.audit",
        description="Judge an engine's outputs by its target, run alone by transformers: exact, near-tie or failure; "
        "sampled ones by tests of the target's law.",
        epilog=_FORM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("outputs", type=Path, help="JSON lines, one per prompt")
    made.add_argument("--target", required=True, help="the engine's target: folder, Hub name, GGUF file, asset:NAME")
    made.add_argument("--tokenizer", help="if it is not the target's own")
    made.add_argument("--dtype", choices=DTYPES, default="float32", help="the precision that the engine ran in")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    sampling = made.add_argument_group("how the engine decoded")
    sampling.add_argument("--temperature", type=float, default=0.0, help="0 (default): greedy; above: sampled")
    sampling.add_argument("--top-k", type=int)
    sampling.add_argument("--top-p", type=float, default=1.0)
    sampling.add_argument("--min-p", type=float, default=0.0)
    sampling.add_argument("--repetition-penalty", type=float, default=1.0)
    sampling.add_argument("--max-new-tokens", type=int, help="its budget; without it the ends of rows are not judged")
    sampling.add_argument("--stop-ids", help="its stop tokens, as in 2,5, or none; default: the target's own")
    sampling.add_argument("--batch", type=int, default=8, help="its rows per forward: noise is measured so (default 8)")
    sampling.add_argument("--gamma", type=int, default=5, help="its draft length: noise is measured so (default 5)")
    sampling.add_argument("--no-special-tokens", action="store_true", help="prompts as text: add no first token")
    made.add_argument(
        "--noise-factor", type=float, default=2.0, help="rounding allowed, times measured noise (default 2)"
    )
    made.add_argument(
        "--logprobs", choices=("raw", "processed"), default="raw", help="of the model's logits, or penalised"
    )
    made.add_argument("--logprob-tolerance", type=float, default=0.0, help="if they were rounded when written")
    made.add_argument(
        "--level", type=float, default=0.001, help="chance that a right sampler is rejected (default 0.001)"
    )
    made.add_argument("--seed", type=int, default=0, help="of the randomised rank test")
    made.add_argument("--skip-invalid", action="store_true", help="judge the other rows of a file with broken lines")
    made.add_argument("--out", type=Path, help="keep every row's verdict in this file; an interrupted audit goes on")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    made.add_argument("--quiet", action="store_true", help="no progress")
    return made


def main(argv: list[str] | None = None) -> int:
    """Audit a file; returns the exit code."""
    given = parser().parse_args(argv)
    try:
        _check(given)
        from specdec.audit.audit import audit

        document, lines = audit(given)
    except KeyboardInterrupt:
        kept = "; verdicts are kept, run the same command to go on" if given.out else ""
        print(f"specdec: interrupted{kept}", file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error).replace("pair.target=", "--target ").replace("pair.tokenizer=", "--tokenizer ")
        print(f"error: {message}", file=sys.stderr)
        return 2
    print(json.dumps(document) if given.json else "\n".join(lines))
    return 0 if document["passed"] else 1


def _check(given: argparse.Namespace) -> None:
    """Refuse settings before anything is loaded."""
    if not given.outputs.is_file():
        raise ConfigError(f"{given.outputs}: no such file; give the engine's outputs as JSON lines (see --help)")
    for name, least in (("batch", 1), ("gamma", 0), ("max_new_tokens", 1)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: it must be at least {least}")
    if not 0 < given.level < 1:
        raise ConfigError(f"--level {given.level}: it must be between 0 and 1")
    if not given.noise_factor > 0:
        raise ConfigError(f"--noise-factor {given.noise_factor}: it must be above 0")
    if given.temperature == 0 and (given.top_k is not None or given.top_p < 1 or given.min_p > 0):
        raise ConfigError("--top-k, --top-p and --min-p are for sampled rows: set --temperature")


if __name__ == "__main__":
    sys.exit(main())
