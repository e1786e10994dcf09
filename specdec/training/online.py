"""Learning from finished rows while a drafter serves: what its learners share.

The target's own tokens are the labels, and the hidden states that rounds brought are the inputs: the target is not run.
Chains of greedy tokens after every token of a row follow from one forward over the row, because a draft is only
continued while its tokens are the row's; so the rounds that the row would have taken are known exactly.
Shape letters: B rows, T tokens, H the target's hidden states, K drafted tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from specdec.adaptation.learner import Learner
from specdec.adaptation.served import ServedRow
from specdec.core.transfer import to_device
from specdec.drafters.context import DrafterContext
from specdec.errors import ConfigError
from specdec.heads.eagle3 import LoadableDrafter
from specdec.heads.weights import Head
from specdec.training.draft_tokens import ReducibleHead

BETAS, CLIP = (0.9, 0.99), 1.0  # of AdamW, and of the gradient's norm
DECAY = 0.8  # of the loss, from one drafted token to the next
DRAFTER = "drafter"  # the arm of all weights
_OTHER_LAYOUTS = ("norm_before_residual", "norm_output", "fc_norm")


class Lessons(NamedTuple):
    """Right-padded rows."""

    ids_BT: Tensor
    chosen_BT: Tensor  # bool: tokens that the target chose
    hidden_BTH: Tensor | None  # of all but the last token

    @classmethod
    def of(cls, rows: list[ServedRow], device: torch.device) -> Lessons:
        """Ordinary tensors: gradients may be taken, which those of a run do not allow."""
        width = max(len(row.ids) for row in rows)
        ids = [row.ids + [0] * (width - len(row.ids)) for row in rows]
        chosen = [[row.num_given <= t < len(row.ids) for t in range(width)] for row in rows]
        hidden_BTH = None
        if (first_TH := rows[0].hidden_TH) is not None:
            hidden_BTH = torch.zeros(len(rows), width - 1, first_TH.shape[-1], device=device)
            for b, row in enumerate(rows):
                assert row.hidden_TH is not None
                hidden_BTH[b, : len(row.hidden_TH)] = row.hidden_TH
        return cls(to_device(ids, device), to_device(chosen, device), hidden_BTH)


def rounds_of(rows: list[ServedRow], right_BTK: Tensor) -> list[int]:
    """Rounds in which each of these rows is decoded.

    Args:
        right_BTK: whether drafted token k after token t is the row's.
    """
    accepted_BT = right_BTK.long().cumprod(-1).sum(-1).tolist()
    found = []
    for row, accepted_T in zip(rows, accepted_BT, strict=True):
        place, last, count = max(row.num_given - 1, 0), len(row.ids) - 1, 0
        while place < last:
            place += accepted_T[place] + 1
            count += 1
        found.append(count)
    return found


class ModuleLearner(Learner):
    """A learner whose weights are those of a module, in float32.

    Args:
        arms: the weights that each updates.
    """

    def __init__(self, module: Any, arms: dict[str, list[nn.Parameter]], lr: float) -> None:
        self.module, self._parts, self.arms = module, arms, tuple(arms)
        options: dict[str, Any] = {"lr": lr, "betas": BETAS, "weight_decay": 0.0}
        self._optimizers = {arm: torch.optim.AdamW(parts, **options) for arm, parts in arms.items()}
        self._marked = dict[str, Tensor]()
        self.device = next(module.parameters()).device

    @abstractmethod
    def loss(self, lessons: Lessons, arm: str) -> Tensor:
        """The mean loss of an arm over the tokens that count."""

    @abstractmethod
    def rounds(self, rows: list[ServedRow]) -> list[int]:
        """Rounds in which each of these rows would be decoded with the weights of the module."""

    @abstractmethod
    def serve(self) -> None:
        """Hand the weights over to the drafter."""

    def use(self, state: dict[str, Tensor]) -> None:
        """Count rounds with these weights from now on."""
        self.module.load_state_dict(state)

    def num_rounds(self, rows: list[ServedRow], *, before: bool = False) -> list[int]:
        with torch.no_grad():
            if not before:
                return self.rounds(rows)
            now = self._state()
            self.use(self._marked)
            found = self.rounds(rows)
            self.use(now)
            return found

    def mark(self) -> None:
        self._marked = self._state()

    def restore(self) -> None:
        self.module.load_state_dict(self._marked)
        for optimizer in self._optimizers.values():
            optimizer.state.clear()
        self.serve()

    def update(self, arm: str, rows: list[ServedRow]) -> None:
        parts = self._parts[arm]
        self.module.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            self._optimizers[arm].zero_grad()
            self.loss(Lessons.of(rows, self.device), arm).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parts, CLIP)
            self._optimizers[arm].step()
        self.serve()

    def _state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.module.state_dict().items()}


class HeadLearner(ModuleLearner):
    """Of a head that serves: its module has the same weights by the same names."""

    def __init__(
        self, drafter: LoadableDrafter, module: Any, arms: dict[str, list[nn.Parameter]], lr: float, depth: int
    ) -> None:
        self._drafter, self._depth = drafter, depth
        super().__init__(module, arms, lr)

    def serve(self) -> None:
        own = self._drafter.weights.tensors
        state = {name.removeprefix("tokens."): t for name, t in self.module.state_dict().items()}
        self._drafter.load({name: tensor for name, tensor in state.items() if name in own})


def layers_of(drafter: LoadableDrafter, context: DrafterContext) -> list[int]:
    """The layers of the target that a head reads, by the numbers of training: the last one's is their count."""
    count = context.target.num_layers
    return [count if number < 0 else number for number in drafter.weights.hidden_layers]


def load_head(module: ReducibleHead, head: Head) -> None:
    """Give a module that is trained the weights of a head that serves.

    Raises:
        ConfigError: the head has parts that the module does not have.
    """
    theirs = {name: tensor for name, tensor in head.tensors.items() if name not in ("d2t", "t2d")}
    if (d2t_N := head.tensors.get("d2t")) is not None:
        module.keep(d2t_N + torch.arange(len(d2t_N), device=d2t_N.device), None)
    known = {name: parameter.shape for name, parameter in module.named_parameters()}
    shapes = {name: tensor.shape for name, tensor in theirs.items()}
    other = next((name for name in shapes.keys() | known if shapes.get(name) != known.get(name)), None)
    other = next((name for name in _OTHER_LAYOUTS if head.spec.config.get(name)), other)
    if other is not None:
        raise ConfigError(
            f"adapt.policy with drafter.path={head.spec.name}: train.py does not train heads with {other}; set "
            "adapt.policy=none, or give a head of train.py"
        )
    module.load_state_dict({name: tensor.float() for name, tensor in theirs.items()}, strict=False)
