"""How acceptance grows with training tokens, draft size and loss; which draft is best at which batch size.

    python experiments/scaling_laws/study.py              # under an hour on two quiet cores; goes on where it stopped
    python experiments/scaling_laws/study.py --rehearse   # every line of it, in minutes; the figures mean nothing

Trains drafts of the built-in target on its own greedy outputs. A run at a constant learning rate is measured each time
its tokens have doubled, so one run gives all of its token counts. Writes results.json, pictures/ and results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parents[1]))  # the step times are measured by experiments/tiny_pair
BATCHES, GAMMAS = (1, 2, 4, 8, 16), range(1, 9)


@dataclass(frozen=True)
class Run:
    """One draft."""

    layers: int = 2
    width: int = 192
    loss: str = "forward_kl"
    seed: int = 1

    @property
    def name(self) -> str:
        """Its folder."""
        return f"layers{self.layers}-width{self.width}-{self.loss}-seed{self.seed}"


RUNS = [
    Run(),
    *(Run(seed=seed) for seed in (2, 3)),  # how much of a difference is chance
    *(Run(layers=layers) for layers in (1, 4)),
    *(Run(width=width) for width in (48, 96)),
    *(Run(loss=loss) for loss in ("argmax", "reverse_kl", "tv")),
]


def config(run: Run, out: Path, rehearse: bool, steps: int) -> Any:
    """The settings of one fit."""
    from specdec.training.config import DraftConfig, LossConfig, PhaseConfig, StageConfig, TrainConfig, ValidationConfig

    cfg = TrainConfig(task="distill", seed=run.seed, threads=1, progress=False, precision="32-true", new_draft="random")
    cfg.output_dir, cfg.device.accelerator = str(out / run.name), "cpu"
    heads = max(1, run.width // 32)
    cfg.draft_model = DraftConfig(run.layers, run.width, 16 * round(run.width * 7 / 48), heads, max(1, heads // 3))
    # No average of the weights: over few steps it would lag far behind what was learned.
    cfg.fit = StageConfig(steps=steps, minutes=None, schedule="constant", warmup_steps=5, lr=2e-3, ema=None)
    cfg.fit.phases, cfg.fit.checkpoint_every = [PhaseConfig(1.0, 256, 8)], 10_000
    cfg.distill = LossConfig(argmax=0.0, forward_kl=0.0)
    setattr(cfg.distill, run.loss, 1.0)
    cfg.validation = ValidationConfig(num_prompts=32, new_tokens=64, gamma=max(GAMMAS), batch=8)
    cfg.greedy.num_batches, cfg.greedy.minutes = 24, None  # no row is seen twice
    if rehearse:
        cfg.greedy.num_batches, cfg.greedy.batch, cfg.greedy.new_tokens, cfg.greedy.max_prompt_tokens = 2, 8, 16, 32
        cfg.validation = ValidationConfig(num_prompts=2, new_tokens=8, gamma=max(GAMMAS), batch=2)
        cfg.corpus.max_files, cfg.heldout.num_prompts = 120, 16
    return cfg


def train(run: Run, out: Path, rehearse: bool) -> list[dict[str, Any]]:
    """All points of a run; those that lie in its folder are not computed again."""
    import torch

    from specdec.core.files import write_json
    from specdec.models.causal_lm import CausalLM
    from specdec.registry import create
    from specdec.training.acceptance import measure_acceptance
    from specdec.training.budget import Budget
    from specdec.training.draft import new_draft
    from specdec.training.loop import fit
    from specdec.training.module import TrainingModule
    from specdec.training.objectives import Distill
    from specdec.training.outputs import OutputStream
    from specdec.training.sources import Sources
    from specdec.training.tasks import heldout_prompts

    torch.set_num_threads(1)
    grid = [2, 4, 8] if rehearse else [10, 20, 40, 80, 160]
    folder = out / run.name
    path = folder / "points.json"
    points: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    same_settings(folder, config(run, out, rehearse, grid[-1]))
    if len(points) == len(grid):
        return points
    (folder / "fit").mkdir(parents=True, exist_ok=True)
    cfg = config(run, out, rehearse, grid[-1])
    sources = Sources(cfg, folder)
    prompts = heldout_prompts(cfg, folder, sources)
    make = lambda context: create("drafter", "model", context)  # noqa: E731
    for steps in grid[len(points) :]:
        cfg = config(run, out, rehearse, steps)
        target = sources.target
        stream = OutputStream(out / "outputs", Budget(cfg.fit), cfg.seed)
        draft = new_draft(cfg, target)
        module = TrainingModule(run.name, draft, Distill(target.module, cfg.distill, cfg.seed), stream)
        record = fit(module, folder / "fit", cfg)  # goes on from the last point's checkpoint
        model = module.result.eval()
        model.set_attn_implementation("sdpa")
        target.module.set_attn_implementation("sdpa")
        acceptance = measure_acceptance(target, make, prompts, cfg.validation, draft=CausalLM(model))
        inner = sum(weight.numel() for name, weight in model.named_parameters() if "embed" not in name)
        points.append(
            {
                **asdict(run),
                "steps": steps,
                "tokens": record["tokens"],
                "inner_parameters": inner,
                "train_loss": record["train_loss"],
                "acceptance": {key: value for key, value in acceptance.items() if key != "categories"},
            }
        )
        write_json(path, points)
        print(f"[{run.name}] {record['tokens']:,} tokens: {acceptance['mean_acceptance_length']}", flush=True)
    return points


def same_settings(folder: Path, cfg: Any) -> None:
    """A run goes on only with the settings that it began with."""
    from specdec.training import TrainingError
    from specdec.training.resolve import deciding
    from specdec.training.stages import keep_settings

    try:
        keep_settings(folder, deciding(cfg), force=False, remedy="delete it, or give another --results")
    except TrainingError as error:
        sys.exit(str(error))


Cell = tuple[Any, int]


def in_turns(cells: list[Cell], measure: Callable[[Cell], float], rehearse: bool) -> dict[Cell, float]:
    """Least seconds of each cell over several turns through all of them: a slow minute hits a turn, not a cell."""
    turns = [{cell: measure(cell) for cell in cells} for _ in range(1 if rehearse else 9)]
    return {cell: min(turn[cell] for turn in turns) for cell in cells}


def draft_times(out: Path, rehearse: bool) -> dict[str, Any]:
    """Seconds of a step of each shape of draft by batch size; after the training, when nothing runs beside it."""
    from experiments.tiny_pair.step_times import measure_step_s
    from specdec.training.draft import new_draft
    from specdec.training.sources import Sources
    from specdec.training.stages import run_stage

    def times(folder: Path) -> dict[str, Any]:
        runs = {f"{run.layers} x {run.width}": run for run in RUNS}  # loss and seed change no time
        target = Sources(config(RUNS[0], out, rehearse, 1), out).target
        models = {shape: new_draft(config(run, out, rehearse, 1), target).eval() for shape, run in runs.items()}
        cells = [(shape, batch) for shape in models for batch in BATCHES]
        seconds = in_turns(cells, lambda cell: measure_step_s(models[cell[0]], cell[1], 5), rehearse)
        return {"draft_step_s": {shape: {b: seconds[shape, b] for b in BATCHES} for shape in models}}

    return run_stage("draft_times", out, False, times)


def prepare(out: Path, rehearse: bool) -> dict[str, Any]:
    """The target's outputs, which all runs learn from, and the target's times."""
    from experiments.tiny_pair.step_times import measure_step_s
    from specdec.training.sources import Sources
    from specdec.training.stages import run_stage

    cfg = config(RUNS[0], out, rehearse, 1)
    sources = Sources(cfg, out)

    def times(folder: Path) -> dict[str, Any]:
        module, lengths = sources.target.module, (1, *(g + 1 for g in GAMMAS))
        cells = [(b, t) for b in BATCHES for t in lengths]
        seconds = in_turns(cells, lambda cell: measure_step_s(module, cell[0], 3, num_tokens=cell[1]), rehearse)
        return {"verify_s": {b: {t: seconds[b, t] for t in lengths} for b in BATCHES}}

    outputs = run_stage("outputs", out, False, sources.generate)
    return {"outputs": outputs, **run_stage("times", out, False, times)}


def main() -> None:
    """Prepare, train two runs at a time, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("results/scaling_laws"))
    parser.add_argument("--out", type=Path, default=None, help="where page and pictures go (default: beside this file)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--run", type=int, default=None, help=argparse.SUPPRESS)  # one run, in a process of its own
    arguments = parser.parse_args()
    results = arguments.results / ("rehearsal" if arguments.rehearse else "full")
    results.mkdir(parents=True, exist_ok=True)
    if arguments.run is not None:
        train(RUNS[arguments.run], results, arguments.rehearse)
        return
    prepared = prepare(results, arguments.rehearse)
    runs = RUNS[:6] if arguments.rehearse else RUNS
    todo = [(i, run) for i, run in enumerate(runs)]
    _run_all([i for i, _ in todo], arguments)
    prepared |= draft_times(results, arguments.rehearse)
    points = [point for _, run in todo for point in json.loads((results / run.name / "points.json").read_text())]
    sys.path.insert(0, str(FOLDER))
    from page import write_page

    out = arguments.out or (results if arguments.rehearse else FOLDER)
    write_page(out, points, prepared)
    print(f"page: {out / 'results.md'}")


def _run_all(numbers: list[int], arguments: argparse.Namespace) -> None:
    """Each run in a process of its own, one thread each; a run that fails stops the study."""
    waiting, running = list(numbers), []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            extra = ["--rehearse"] if arguments.rehearse else []
            command = [
                sys.executable,
                __file__,
                "--run",
                str(waiting.pop(0)),
                "--results",
                str(arguments.results),
                *extra,
            ]
            running.append(subprocess.Popen(command, env=environment))
        process = running.pop(0)
        if process.wait() != 0:
            for other in running:
                other.terminate()
            sys.exit("a run failed; its message is above. Run the same command again to go on")


if __name__ == "__main__":
    main()
