"""Outputs of another engine as a file for `python -m specdec.audit`, with the folder of the target that they are of.

    python experiments/audit/engine_outputs.py openvino-draft --pair equal --batch 1,8,32 --peers FOLDER --out FOLDER

Methods are those of experiments/speed/methods.yaml that have a peer; its environment comes from
experiments/speed/peers/install.py. Two prompts per row of the batch, 16 at least, as the benchmark decodes them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from specdec.bench.export import export_pair
from specdec.bench.own import Workloads
from specdec.bench.peers import PeerProcess, interpreter
from specdec.bench.plan import BenchCell
from specdec.bench.suite import Library, Study, Suite, load_suite
from specdec.core.files import write_lines
from specdec.models.pair import load_pair

MIN_PROMPTS = 16


def outputs_of(name: str, given: argparse.Namespace, suite: Suite, library: Library) -> None:
    """Ask the engine once per batch size; writes NAME-BATCH.jsonl."""
    method = library.methods[name]
    peer = library.peers[str(method.peer)]
    python = interpreter(peer, given.peers)
    if python is None:
        raise SystemExit(f"--peers {given.peers}: no environment {peer.environment}")
    process = PeerProcess(name, python, (library.folder / peer.script).resolve(), given.out / f"{name}.log")
    work = Workloads(suite, library.pairs[given.pair])
    for batch in map(int, given.batch.split(",")):
        study = Study(
            title="audit",
            pairs=[given.pair],
            methods=[name],
            batches=[batch],
            max_new_tokens=given.max_new_tokens,
            min_prompts=MIN_PROMPTS,
        )
        cfg = work.config(study, ["scheduler=plain"], batch)
        target, draft = export_pair(cfg, load_pair(cfg), given.out)
        load = work.of(BenchCell("audit", given.pair, None, batch, name), study, ["scheduler=plain"])
        reply = process.ask(request_of(load, target, draft, batch, method.options, given), timeout_s=1800)
        exact = load.outcome(reply["outputs"])["num_exact"]
        path = given.out / f"{name}-{batch}.jsonl"
        rows = zip(load.prompts, reply["outputs"], strict=True)
        write_lines(path, ({"prompt_ids": prompt.ids, "output_ids": output} for prompt, output in rows))
        print(json.dumps({"outputs": str(path), "target": str(target), "num_exact": exact, "of": len(load.prompts)}))
    process.close()


def request_of(
    load: Any, target: Path, draft: Path | None, batch: int, options: dict[str, Any], given: argparse.Namespace
) -> dict[str, Any]:
    """What the peer is asked (form: specdec/bench/peers.py)."""
    drafts = draft is not None and options.get("speculative")
    return {
        "target": str(target.resolve()),
        "draft": str(draft.resolve()) if draft is not None and drafts else None,
        "prompts": [prompt.ids for prompt in load.prompts],
        "max_new_tokens": given.max_new_tokens,
        "batch": batch,
        "stop_ids": sorted(load.pair.stop_ids),
        "gamma": given.gamma,
        "threads": 1,
        "dtype": "float32",
        "options": {"cache": str((given.out / "peers").resolve()), **options},
    }


def main() -> None:
    """Ask for what the command names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("--pair", default="equal")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--gamma", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/audit"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    suite, library = load_suite(["suite=two_core", f"out={given.out}", f"cache={given.out / 'cache'}"])
    outputs_of(given.method, given, suite, library)


if __name__ == "__main__":
    main()
