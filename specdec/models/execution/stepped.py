"""Forwards of models with recurrent states: their mixers run token by token, everything else once for all tokens.

A mixer (`specdec.models.states.Mixer`) reads the state of a token's predecessor and leaves one after the token.
Attention, MLPs, experts and the head are computed for all tokens together, as without states. So every fed token has a
checkpoint after one forward, also in a tree, whose nodes start from their parents' checkpoints. A prompt, which needs
only its last state, runs in the chunked form of the mixers.
Shape letters: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import LinearAttentionLayer

from specdec.models.execution.base import Call
from specdec.models.states import CONV, Mixer, StateFeed, StatePart, States


class Stepper:
    """Runs a module's mixers as a `StateFeed` says, on the states that it names.

    Args:
        layers: the cache layers by which the module's mixers find their states.
    """

    def __init__(self, module: nn.Module, states: States, layers: list[Any]) -> None:
        self._mixers = [(module.get_submodule(mixer.name), mixer) for mixer in states.mixers]
        self._states = states
        self._layers = layers

    @contextmanager
    def running(self, call: Call) -> Iterator[None]:
        """Within the block, the mixers read and write the states of ``call.states``."""
        assert call.states is not None
        own = [vars(module).get("forward") for module, _ in self._mixers]  # hooks of other libraries replace it too
        for module, mixer in self._mixers:
            module.forward = self._stepped(module.forward, mixer, call.states)
        try:
            yield
        finally:
            for (module, _), forward in zip(self._mixers, own, strict=True):
                if forward is None:
                    del module.forward  # the instance's; that of the class is in effect again
                else:
                    module.forward = forward

    def _stepped(self, forward: Callable[..., Any], mixer: Mixer, feed: StateFeed) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            kwargs = {name: None if name == "attention_mask" else value for name, value in kwargs.items()}
            num_new, outputs = feed.width * len(feed.sources_NB), []
            for n, (sources_B, targets_B) in enumerate(zip(feed.sources_NB, feed.targets_NB, strict=True)):
                part = slice(n * feed.width, (n + 1) * feed.width)
                self._load(mixer, feed, sources_B)
                outputs.append(forward(*_cut(args, num_new, part), **_cut(kwargs, num_new, part)))
                self._store(mixer, feed, targets_B)
            return outputs[0] if len(outputs) == 1 else _joined(outputs)

        return run

    def _load(self, mixer: Mixer, feed: StateFeed, places_B: Tensor) -> None:
        """Put the states of these places into the cache layers."""
        for number in mixer.parts:
            part = self._states.parts[number]
            layer: LinearAttentionLayer = self._layers[part.layer]
            getattr(layer, part.kind)[part.number] = feed.storage.parts[number][feed.slots_B, places_B]
            _mark(layer, part)

    def _store(self, mixer: Mixer, feed: StateFeed, places_B: Tensor) -> None:
        """Keep the states of the cache layers in these places."""
        for number in mixer.parts:
            part = self._states.parts[number]
            state: Tensor = getattr(self._layers[part.layer], part.kind)[part.number]
            feed.storage.parts[number][feed.slots_B, places_B] = state


def _mark(layer: LinearAttentionLayer, part: StatePart) -> None:
    """Say that a layer's state is there: that before a row's first token is zero."""
    layer.has_previous_state[part.number] = True
    if part.kind == CONV:
        layer.is_conv_states_initialized[part.number] = True
        layer.conv_kernel_size[part.number] = part.shape[-1]
    else:
        layer.is_recurrent_states_initialized[part.number] = True


def _cut(value: Any, num_new: int, part: slice) -> Any:
    """The arguments of some of the tokens: tensors (B, T, ...) are cut."""
    if isinstance(value, Tensor):
        return value[:, part] if value.dim() > 1 and value.shape[1] == num_new else value
    if isinstance(value, tuple | list):
        return type(value)(_cut(item, num_new, part) for item in value)
    if isinstance(value, dict):
        return {name: _cut(item, num_new, part) for name, item in value.items()}
    return value


def _joined(outputs: list[Any]) -> Any:
    """The steps' outputs as one: a tensor (B, T, D), or a tuple that begins with it."""
    if isinstance(outputs[0], tuple):
        return (torch.cat([output[0] for output in outputs], dim=1), *outputs[-1][1:])
    return torch.cat(outputs, dim=1)
