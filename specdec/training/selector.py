"""`task=selector`: logs roots, measures times, and fits the network that chooses tree shapes (delayed tree expansion).

Loss = -log(S / S0) + lambda * (mean over the worst share of the roots of max(1 - S / S0, 0)^2), where at a root
S = sum_a pi(a) E(a) / sum_a pi(a) T(a) is the speed of the chosen shapes, E their expected tokens, T their measured
seconds, and S0 the speed of the shape that is best for all roots of the temperature and batch size.
Source: Thomas et al. 2026, arXiv 2602.16994, section 4.
Shape letters: N roots, A shapes, U pairs of temperature and batch size, X numbers per root.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specdec.config.schema import PairConfig
from specdec.core.files import write_json
from specdec.core.sampling_params import SamplingParams
from specdec.errors import SpecdecError
from specdec.models.causal_lm import CausalLM
from specdec.models.checkpoints import load_model
from specdec.models.compatibility import supported
from specdec.models.pair import fingerprint_of
from specdec.models.vocabulary import check_fit
from specdec.selectors.combs import CombLayout
from specdec.selectors.efficiency import check_rule
from specdec.selectors.network import NUM_NUMBERS, SelectorNetwork
from specdec.selectors.times import RoundTimes, measure
from specdec.selectors.trained import save_selector
from specdec.training import TrainingError
from specdec.training.config import TrainConfig
from specdec.training.decoding import stop_ids_of
from specdec.training.export import provenance_of, replace_folder
from specdec.training.prompts import prompt_source
from specdec.training.roots import RootSet, joined, log_roots
from specdec.training.selector_config import SelectorConfig
from specdec.training.sources import Sources
from specdec.training.stages import Record, run_stage

ROOTS, PARTIAL, NETWORK = "roots.safetensors", "partial.safetensors", "network.pt"
ROOTS_PER_STEP, MEASURED_EVERY = 256, 50
STATIC_LEAD = 3.0  # of the logits of the static shapes, at the start


def train_selector(cfg: TrainConfig, folder: Path) -> Record:
    """The stages roots, times and fit; exports a folder for ``selector=trained``, with a table for ``static``."""
    some, sources = cfg.selector, Sources(cfg, folder)
    check_settings(some)
    target, draft = sources.target, load_draft(cfg, sources)
    stages = {"roots": run_stage("roots", folder, cfg.force, lambda out: log_all(cfg, sources, draft, out))}
    stages["times"] = run_stage("times", folder, cfg.force, lambda out: time_all(some, target, draft))
    roots = RootSet.load(folder / "roots" / ROOTS)
    problem = Problem(some, roots, [_times(line) for line in stages["times"]["batches"]])
    stages["fit"] = run_stage("fit", folder, cfg.force, lambda out: fit(cfg, problem, out))
    network = problem.network()
    network.load_state_dict(torch.load(folder / "fit" / NETWORK))
    pair = [fingerprint_of(cfg.frozen, target.module), fingerprint_of(some.draft, draft.module)]
    settings = {
        "selector": "trained",
        "pair": pair,
        **{key: getattr(some, key) for key in ("verifier", "temperatures", "num_paths", "depth")},
        **problem.sizes(),
        "usual": problem.usual(),
    }

    def write(staged: Path) -> None:
        save_selector(staged, network, settings)
        write_json(staged / "shapes.json", {"shapes": problem.table(pair)})

    destination = replace_folder(cfg, write, provenance_of(cfg, sources, stages))
    return {"export": str(destination), "roots": len(roots), **stages["fit"]["final"]}


def check_settings(cfg: SelectorConfig) -> None:
    """Refuse settings from which nothing can be learned.

    Raises:
        TrainingError: names the setting.
    """
    try:
        check_rule(cfg.verifier, "selector.verifier")
    except SpecdecError as error:
        raise TrainingError(str(error)) from error
    for key in ("num_paths", "depth", "samples", "every", "num_batches", "rows", "steps"):
        if getattr(cfg, key) < 1:
            raise TrainingError(f"selector.{key}={getattr(cfg, key)}: it must be at least 1")
    if not cfg.temperatures or min(cfg.temperatures) <= 0:
        raise TrainingError(f"selector.temperatures={cfg.temperatures}: give temperatures above 0")
    if not cfg.batches or min(cfg.batches) < 1:
        raise TrainingError(f"selector.batches={cfg.batches}: give batch sizes of at least 1")


def load_draft(cfg: TrainConfig, sources: Sources) -> CausalLM:
    """The pair's draft, beside the target and in its number format.

    Raises:
        TrainingError: it cannot be loaded, or does not fit the target.
    """
    try:
        target, pair = sources.target, PairConfig(name="frozen")
        module = load_model("draft", cfg.selector.draft, pair, target.dtype, target.device)
        draft = supported(module, f"selector.draft={cfg.selector.draft}")
        check_fit(target, draft, sources.tokenizer, None, by_text=False, settings=False)
    except SpecdecError as error:
        raise TrainingError(str(error).replace("pair.draft", "selector.draft")) from error
    return draft


def log_all(cfg: TrainConfig, sources: Sources, draft: CausalLM, out: Path) -> Record:
    """Stage: the roots of all temperatures, a file per batch of prompts; files of an interrupted run are kept."""
    some, stops = cfg.selector, stop_ids_of(sources.target.module)
    lengths = replace(cfg.greedy, batch=some.rows, max_prompt_tokens=some.max_prompt_tokens)
    prompts = prompt_source(sources.corpus, sources.tokenizer, lengths, cfg.seed)
    paths = []
    for i, temperature in enumerate(some.temperatures):
        params = SamplingParams(temperature=temperature, seed=cfg.seed)
        for n in range(some.num_batches):
            number = i * some.num_batches + n
            paths.append(out / f"batch_{number:04d}.safetensors")
            if not paths[-1].exists():
                ids = prompts(number)
                made = log_roots(sources.target, draft, ids, params, some, number * some.rows, stops)
                made.save(out / PARTIAL)
                (out / PARTIAL).replace(paths[-1])
                print(f"[roots] {len(paths)} of {len(some.temperatures) * some.num_batches} batches", flush=True)
    roots = joined([RootSet.load(path) for path in paths])
    roots.save(out / ROOTS)
    return {"roots": len(roots), "shapes": roots.tokens_NA.shape[1]}


def time_all(cfg: SelectorConfig, target: CausalLM, draft: CausalLM) -> Record:
    """Stage: forward times at every batch size."""
    for model in (target, draft):
        model.execute("auto")
    params = SamplingParams(temperature=cfg.temperatures[0])
    return {"batches": [asdict(measure(target, draft, batch, cfg.num_paths, params)) for batch in cfg.batches]}


def _times(line: Record) -> RoundTimes:
    """Times as they were before JSON made strings of their keys."""
    return RoundTimes(*({int(size): seconds for size, seconds in line[key].items()} for key in ("draft_s", "target_s")))


class Problem:
    """Roots with the costs of all shapes, and the static shapes that a selector is measured against."""

    def __init__(self, cfg: SelectorConfig, roots: RootSet, times: list[RoundTimes]) -> None:
        self.cfg, self.roots = cfg, roots
        self.shapes = CombLayout(cfg.num_paths, cfg.depth).shapes
        self.costs_UA = torch.tensor([[each.of(shape) for shape in self.shapes] for each in times])
        self.ratios_UX = torch.tensor([each.ratios() for each in times]).log()
        which = [torch.isclose(roots.temperatures_N, torch.tensor(t)) for t in cfg.temperatures]
        self.kinds_N = torch.stack(which).int().argmax(0)
        count = max(int(roots.prompts_N.max()) + 1, 2)
        random = torch.rand(count, generator=torch.Generator().manual_seed(0))
        held = random <= random.kthvalue(max(1, round(cfg.heldout_share * count))).values
        self.held_N = held[roots.prompts_N]
        trained = self.roots.where(~self.held_N)
        kinds = self.kinds_N[~self.held_N]
        sums = [trained.tokens_NA[kinds == k].mean(0) for k in range(len(cfg.temperatures))]
        self.best_KU = torch.stack([(row_A / self.costs_UA).argmax(1) for row_A in sums])  # by temperature and batch

    def sizes(self) -> Record:
        """Sizes of the network."""
        numbers = NUM_NUMBERS + self.ratios_UX.shape[1]
        sizes = {
            "target_size": self.roots.target_hidden_ND.shape[1],
            "draft_size": self.roots.draft_hidden_N2E.shape[2],
        }
        return {**sizes, "num_numbers": numbers}

    def network(self) -> SelectorNetwork:
        """One before training: it prefers the static shapes, so that it starts from their speed.

        From equal chances the loss first leads to the cheapest shape everywhere, and a saturated softmax stays there.
        """
        network = SelectorNetwork(**self.sizes(), num_shapes=len(self.shapes))
        with torch.no_grad():
            last = network.layers[-1]
            assert isinstance(last, nn.Linear)
            last.bias[self.best_KU.unique()] += STATIC_LEAD
        return network

    def numbers(self, roots: RootSet, sizes_N: Tensor) -> Tensor:
        """(N, X): the roots' numbers, and the times of the batch size that each is asked for."""
        return torch.cat([roots.numbers_NX, self.ratios_UX[sizes_N]], dim=1)

    def usual(self) -> list[Record]:
        """The best static shape of each temperature, at the middle batch size."""
        middle = len(self.cfg.batches) // 2
        best = [self.shapes[int(row[middle])] for row in self.best_KU]
        return [
            {"temperature": t, "shape": [shape.width, shape.trunk, shape.depth]}
            for t, shape in zip(self.cfg.temperatures, best, strict=True)
        ]

    def table(self, pair: list[str]) -> list[Record]:
        """The best static shapes, as ``selector=static`` reads them."""
        lines = []
        for k, temperature in enumerate(self.cfg.temperatures):
            for u, batch in enumerate(self.cfg.batches):
                shape = self.shapes[int(self.best_KU[k, u])]
                line = {"pair": pair, "verifier": self.cfg.verifier, "temperature": temperature, "batch": batch}
                sizes = {"num_paths": shape.width, "trunk": shape.trunk, "branch": shape.depth - shape.trunk}
                lines.append({**line, **sizes})
        return lines


def fit(cfg: TrainConfig, problem: Problem, out: Path) -> Record:
    """Stage: the network, with the weights that were best at the roots of the held-out prompts."""
    some = cfg.selector
    torch.manual_seed(cfg.seed)
    network, trained = problem.network(), torch.nonzero(~problem.held_N)[:, 0]
    sizes_N = torch.arange(len(problem.roots)) % len(some.batches)
    numbers_NX = problem.numbers(problem.roots, sizes_N)[trained]
    network.mean_X.copy_(numbers_NX.mean(0))
    network.deviation_X.copy_(numbers_NX.std(0).clamp(min=1e-3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=some.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, some.steps)
    best, points = -float("inf"), list[Record]()
    for step in range(1, some.steps + 1):
        network.train()
        chosen = trained[torch.randint(len(trained), (ROOTS_PER_STEP,))]
        loss = loss_of(problem, network, chosen, torch.randint(len(some.batches), (ROOTS_PER_STEP,)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % MEASURED_EVERY == 0 or step == some.steps:
            figures = evaluate(problem, network)
            points.append({"step": step, "loss": round(float(loss.detach()), 5), **figures})
            if figures["gain"] > best:
                best = figures["gain"]
                torch.save(network.state_dict(), out / NETWORK)
    kept = max(points, key=lambda point: float(point["gain"]))
    return {"final": {key: kept[key] for key in ("step", "gain", "oracle_gain", "by_batch")}, "points": points}


def loss_of(problem: Problem, network: SelectorNetwork, chosen: Tensor, sizes: Tensor) -> Tensor:
    """The loss at some roots, each at a batch size."""
    roots, some = problem.roots.where(chosen), problem.cfg
    policy_NA = network(roots.target_hidden_ND, roots.draft_hidden_N2E, problem.numbers(roots, sizes)).softmax(-1)
    costs_NA, best_N1 = problem.costs_UA[sizes], problem.best_KU[problem.kinds_N[chosen], sizes][:, None]
    speed_N = (policy_NA * roots.tokens_NA).sum(1) / (policy_NA * costs_NA).sum(1)
    static_N = (roots.tokens_NA.gather(1, best_N1) / costs_NA.gather(1, best_N1))[:, 0]
    relative_N = speed_N / static_N
    shortfall_N = (1 - relative_N).clamp(min=0).square()
    worst = shortfall_N.topk(max(1, round(some.risk_share * len(chosen)))).values
    loss: Tensor = -relative_N.log().mean() + some.risk_weight * worst.mean()
    return loss


@torch.no_grad()
def evaluate(problem: Problem, network: SelectorNetwork) -> dict[str, Any]:
    """Predicted speed at the held-out roots relative to the best static shape: all tokens by all seconds.

    ``oracle_gain`` is that of the shape of the most expected tokens per second at each root, by the same estimates.
    """
    network.eval()
    roots, kinds = problem.roots.where(problem.held_N), problem.kinds_N[problem.held_N]
    gains, by_batch = list[list[float]](), dict[str, float]()
    for u, batch in enumerate(problem.cfg.batches):
        sizes = torch.full((len(roots),), u)
        numbers_NX = problem.numbers(roots, sizes)
        chosen = network(roots.target_hidden_ND, roots.draft_hidden_N2E, numbers_NX).argmax(1)
        oracle, static = (roots.tokens_NA / problem.costs_UA[u]).argmax(1), problem.best_KU[kinds, u]

        def speed(shapes_N: Tensor, u: int = u) -> float:
            tokens = roots.tokens_NA.gather(1, shapes_N[:, None]).sum()
            return float(tokens / problem.costs_UA[u][shapes_N].sum())

        gains.append([speed(choice) / speed(static) - 1 for choice in (chosen, oracle)])
        by_batch[str(batch)] = round(gains[-1][0], 4)
    mean = torch.tensor(gains).mean(0).tolist()
    return {"gain": round(mean[0], 5), "oracle_gain": round(mean[1], 5), "by_batch": by_batch}
