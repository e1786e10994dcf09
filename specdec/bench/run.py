"""Take a suite's measurements in turns; each is on disk at once, so that a rerun measures only what is missing."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from specdec.bench.export import export_pair
from specdec.bench.machine import load_average
from specdec.bench.own import Workloads, measure, warm_up
from specdec.bench.peers import PeerProcess, interpreter
from specdec.bench.plan import BenchCell, Step, pairs, refusal, steps
from specdec.bench.prompts import data_overrides
from specdec.bench.suite import ABSENT, DONE, FAILED, NO_TIME, REFUSED, Library, Method, Study, Suite
from specdec.config.explain import explain
from specdec.config.identity import content_hash
from specdec.core.files import append_line, read_lines
from specdec.draft_lengths.profile import FOLDER as DRAFT_TABLES
from specdec.errors import SpecdecError
from specdec.models.pair import load_pair

MEASUREMENTS = "measurements.jsonl"
_PEER_WARMUP_TOKENS = 4


class NotMeasuredError(SpecdecError):
    """A cell that is not measured, with its status: a peer that is not installed, or a method that cannot do it."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def run(suite: Suite, library: Library, deadline: float) -> dict[str, dict[str, Any]]:
    """Measure what is not on disk yet, until ``deadline``; returns all measurements of the suite by their key."""
    for study in suite.studies.values():
        data_overrides(study.data or suite.data)  # a file that does not exist is refused before anything is measured
    path = Path(str(suite.out)) / MEASUREMENTS
    path.parent.mkdir(parents=True, exist_ok=True)
    if suite.force:
        path.unlink(missing_ok=True)
        shutil.rmtree(Path(suite.cache) / DRAFT_TABLES, ignore_errors=True)
    records = _up_to_date({record["key"]: record for record in read_lines(path)})
    plan = {pair: list(steps(suite, library, pair)) for pair in pairs(suite)}
    wanted = {step.key for planned in plan.values() for step in planned}
    num_done = sum(records.get(key, {}).get("status") == DONE for key in wanted)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not suite.progress, transient=True) as bar:
        task = bar.add_task("", total=len(wanted), completed=num_done)
        for pair, planned in plan.items():
            missing = [step for step in planned if records.get(step.key, {}).get("status") != DONE]
            with Measuring(suite, library, pair) as measuring:
                for step in missing:
                    if suite.progress:
                        number, cell = int(bar.tasks[task].completed) + 1, step.cell
                        where = f"{cell.study}: {cell.pair}, batch {cell.batch}, {cell.method}"
                        bar.console.out(f"[{number}/{len(wanted)}] {where}", highlight=False)
                    records[step.key] = measuring.take(step, in_time=time.monotonic() < deadline)
                    append_line(path, records[step.key])
                    bar.advance(task)
    return {key: records[key] for key in records if key in wanted}


def _up_to_date(records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The measurements whose models and prompts have not changed since."""
    now = {name: content_hash(name) for record in records.values() for name in record.get("inputs") or ()}
    current = {
        key: record
        for key, record in records.items()
        if all(now[name] in (known, None) for name, known in (record.get("inputs") or {}).items())
    }
    if num_stale := len(records) - len(current):
        print(f"{num_stale} measurements are of files that have changed since: they are repeated", file=sys.stderr)
    return current


class Measuring:
    """All measurements on one pair; peers stay open between them."""

    def __init__(self, suite: Suite, library: Library, pair: str) -> None:
        self.suite = suite
        self.library = library
        self._workloads = Workloads(suite, library.pairs[pair])
        self._peers: dict[str, PeerProcess] = {}
        self._warm: set[BenchCell] = set()
        self._folders: tuple[Path, Path | None] | None = None
        self._exports = any(library.methods[name].peer for study in suite.studies.values() for name in study.methods)

    def __enter__(self) -> Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self._peers.values():
            peer.close()

    def take(self, step: Step, in_time: bool) -> dict[str, Any]:
        """One record. An error becomes a record of it, never a figure."""
        cell, method = step.cell, self.library.methods[step.cell.method]
        study = self.suite.studies[cell.study]
        record = {"key": step.key, **asdict(cell), "repeat": step.repeat, "time": time.time()}
        try:
            if not in_time:
                raise NotMeasuredError(NO_TIME, f"minutes={self.suite.minutes:g}: run the same command to go on")
            if why := refusal(method, cell.batch):
                raise NotMeasuredError(REFUSED, why)
            figures = self._of_peer(cell, study, method) if method.peer else self._own(cell, study, method)
        except NotMeasuredError as error:
            return {**record, "status": error.status, "error": str(error)}
        except Exception as error:  # the other methods are still measured
            return {**record, "status": FAILED, "error": explain(error)}
        self._warm.add(cell)
        return {**record, "status": DONE, "load_average": load_average(), **figures}

    def _own(self, cell: BenchCell, study: Study, method: Method) -> dict[str, Any]:
        if self._exports:
            self._export(cell, study)
        work = self._workloads.of(cell, study, method.overrides)
        warm_up_s = None if cell in self._warm else warm_up(work, method)
        return {"warm_up_s": warm_up_s, **work.provenance(), **measure(work, study.bound)}

    def _export(self, cell: BenchCell, study: Study) -> tuple[Path, Path | None]:
        """The pair's folders, written before anything decodes with it."""
        if self._folders is None:
            cfg = self._workloads.config(study, ["scheduler=plain"], cell.batch)
            self._folders = export_pair(cfg, load_pair(cfg), Path(self.suite.cache))
        return self._folders

    def _of_peer(self, cell: BenchCell, study: Study, method: Method) -> dict[str, Any]:
        peer = self._started(cell.method, method)
        target, draft = self._export(cell, study)
        if method.options.get("speculative") and draft is None:
            raise NotMeasuredError(REFUSED, f"the pair {cell.pair} has no draft model")
        work = self._workloads.of(cell, study, ["scheduler=plain"])
        request: dict[str, Any] = {
            "target": str(target.resolve()),
            "draft": str(draft.resolve()) if draft is not None and method.options.get("speculative") else None,
            "prompts": [prompt.ids for prompt in work.prompts],
            "max_new_tokens": int(work.cfg.max_new_tokens),
            "batch": cell.batch,
            "stop_ids": sorted(work.pair.stop_ids),
            "gamma": int(work.cfg.gamma),
            "threads": self.suite.threads,
            "dtype": str(work.cfg.runner.dtype),
            "options": {"cache": str((Path(self.suite.cache) / "peers").resolve()), **method.options},
        }
        started = time.perf_counter()
        few = {**request, "prompts": request["prompts"][: cell.batch]}
        few |= {"max_new_tokens": _PEER_WARMUP_TOKENS} if cell in self._warm else {}
        peer.ask(few, self.suite.peer_timeout_s)
        warm_up_s = time.perf_counter() - started
        reply = peer.ask(request, self.suite.peer_timeout_s)
        figures = work.outcome(reply["outputs"])
        return {
            "warm_up_s": warm_up_s,
            **work.provenance(),
            "drafter": None,
            **figures,
            "wall_s": reply["seconds"],
            "tokens_per_s": figures["num_output_tokens"] / reply["seconds"],
            "versions": reply["versions"],
        }

    def _started(self, name: str, method: Method) -> PeerProcess:
        """The process of a peer: started once per pair, and not again if it dies."""
        assert method.peer is not None
        peer = self.library.peers[method.peer]
        python = interpreter(peer, Path(self.suite.peers))
        if python is None:
            remedy = f"python {self.library.folder / 'peers' / 'install.py'} {peer.environment}"
            missing = f"no environment {peer.environment} under peers={self.suite.peers}: {remedy}"
            raise NotMeasuredError(ABSENT, missing)
        if peer.needs_gpu and not torch.cuda.is_available():
            raise NotMeasuredError(REFUSED, "needs a GPU")
        if name not in self._peers:
            script = (self.library.folder / peer.script).resolve()
            log = Path(str(self.suite.out)) / "logs" / f"{name}.log"
            self._peers[name] = PeerProcess(name, python, script, log)
        return self._peers[name]
