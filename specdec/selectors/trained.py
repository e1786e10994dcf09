"""A small network chooses the shapes: one call per round for all rows.

Shape letters: B rows, A shapes.
"""

from __future__ import annotations

import json
from math import isclose
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from specdec.assets import local_path
from specdec.core.tensor_files import write_tensors
from specdec.core.transfer import to_device
from specdec.errors import ConfigError
from specdec.selectors.base import Roots, RowShape, Selector, SelectorContext
from specdec.selectors.combs import CombLayout
from specdec.selectors.network import NUM_NUMBERS, SelectorNetwork, numbers_of
from specdec.selectors.times import measure

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HOW = "train one with python train.py task=selector"


class TrainedSelector(Selector):
    """The shape of the largest logit among those that the row may draft.

    A row of one token has no states; it gets the shape that was best for all roots of the training.
    """

    reads_states = True

    def __init__(self, context: SelectorContext, *, path: str | None) -> None:
        settings = read_selector(path, context)
        if context.target is None or context.draft is None:
            raise ConfigError("selector=trained reads the states of the draft model: set drafter=model")
        self._context = context
        self._shapes = CombLayout(settings["num_paths"], settings["depth"]).shapes
        if settings["num_paths"] > context.num_paths or settings["depth"] > context.depth:
            raise ConfigError(
                f"selector.path={path} chooses up to {settings['num_paths']} paths of {settings['depth']} tokens: set "
                f"tree.num_paths and gamma to as much, at least (now {context.num_paths} and {context.depth})"
            )
        self._num_paths: int = settings["num_paths"]
        usual = next(line for line in settings["usual"] if _same(line["temperature"], context.params.temperature))
        self._usual = RowShape(*usual["shape"])
        self._head = context.target.module.get_output_embeddings()
        self._device = context.target.device
        sizes = (settings["target_size"], settings["draft_size"], settings["num_numbers"], len(self._shapes))
        self._network = _loaded(SelectorNetwork(*sizes), str(path)).to(self._device).eval()
        self._depths_A = torch.tensor([shape.depth for shape in self._shapes], device=self._device)
        self._times_X = self._network.mean_X[NUM_NUMBERS:]  # until they are measured: those of the training

    def prepare(self, batch: int) -> None:
        models, params = (self._context.target, self._context.draft), self._context.params
        assert models[0] is not None
        assert models[1] is not None
        times = measure(models[0], models[1], batch, self._num_paths, params, self._context.clock)
        self._times_X = torch.tensor(times.ratios(), device=self._device).log()

    @torch.inference_mode()
    def choose(self, roots: Roots) -> list[RowShape]:
        assert roots.states is not None
        states = roots.states
        numbers_BX = numbers_of(self._head, states, roots.draft_scores_BV, roots.lengths, roots.settings)
        times_BX = self._times_X.expand(len(numbers_BX), -1)
        hidden = states.target_hidden_BD.float(), states.draft_hidden_B2E.float()
        logits_BA: Tensor = self._network(*hidden, torch.cat([numbers_BX, times_BX], dim=1))
        rooms_B1 = to_device(roots.depths, self._device)[:, None]
        best = logits_BA.masked_fill(self._depths_A > rooms_B1, -torch.inf).argmax(1).tolist()
        usual = self._usual
        return [
            self._shapes[place] if known else RowShape(usual.width, usual.trunk, min(usual.depth, depth))
            for place, known, depth in zip(best, states.known_B, roots.depths, strict=True)
        ]


def read_selector(path: str | None, context: SelectorContext) -> dict[str, Any]:
    """The settings of a trained selector's folder.

    Raises:
        ConfigError: it is no such folder, or it was trained for another pair, verifier or temperature.
    """
    if path is None:
        raise ConfigError(f"selector=trained needs selector.path=FOLDER; {HOW}")
    try:
        settings: dict[str, Any] = json.loads((local_path(path) / CONFIG).read_text())
        pair, verifier, temperatures = (settings[key] for key in ("pair", "verifier", "temperatures"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"selector.path={path}: no folder of `python train.py task=selector` ({type(error).__name__}: {error})"
        ) from None
    if pair != context.pair:
        raise ConfigError(
            f"selector.path={path} was trained for another pair: {HOW} frozen=TARGET selector.draft=DRAFT"
        )
    if verifier != context.verifier:
        raise ConfigError(
            f"selector.path={path} was trained for verifier={verifier}, not verifier={context.verifier}: {HOW} "
            f"selector.verifier={context.verifier}"
        )
    if not any(_same(value, context.params.temperature) for value in temperatures):
        known = ", ".join(f"{value:g}" for value in temperatures)
        raise ConfigError(
            f"selector.path={path} was trained for temperature {known}, not {context.params.temperature:g}: {HOW} "
            f"selector.temperatures=[{context.params.temperature:g}]"
        )
    return settings


def save_selector(folder: Path, network: SelectorNetwork, settings: dict[str, Any]) -> None:
    """Write the folder: config.json and the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_tensors(weights, folder / WEIGHTS, of_a_model=True)
    (folder / CONFIG).write_text(json.dumps(settings, indent=1) + "\n")


def _loaded(network: SelectorNetwork, path: str) -> SelectorNetwork:
    try:
        network.load_state_dict(load_file(local_path(path) / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"selector.path={path}: {WEIGHTS} cannot be loaded: {reason}") from None
    return network


def _same(a: float, b: float) -> bool:
    return isclose(a, b, abs_tol=1e-9)
