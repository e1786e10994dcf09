"""Heads in plain torch: one row, all of it at once, without a cache; written from the published descriptions.

Shape letters: T tokens or entries, Q queries, K keys, S slots, H hidden states, D width, E head size, N tokens
that can be drafted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

Tensors = dict[str, Tensor]
EPS, THETA, HEAD = 1e-5, 10000.0, 8  # as in head_folders


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


def rotated(x_HTE: Tensor, positions_T: Tensor) -> Tensor:
    angles = positions_T[:, None] * THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angles.cos(), angles.sin()))
    return x_HTE * cos + torch.cat([-x_HTE[..., HEAD // 2 :], x_HTE[..., : HEAD // 2]], dim=-1) * sin


def heads(tensors: Tensors, name: str, x_TD: Tensor) -> Tensor:
    """(H, T, E), with the norm that belongs to the product, if it has one."""
    x_HTE = linear(x_TD, tensors[f"{name}_proj.weight"]).view(len(x_TD), -1, HEAD).transpose(0, 1)
    own = tensors.get(f"{name}_norm.weight")
    return x_HTE if own is None else rms(x_HTE, own)


def attention(
    tensors: Tensors, name: str, queries_QX: Tensor, keys_KX: Tensor, at_Q: Tensor, at_K: Tensor, seen_QK: Tensor
) -> Tensor:
    q, k = (
        rotated(heads(tensors, f"{name}.{n}", x), at) for n, x, at in (("q", queries_QX, at_Q), ("k", keys_KX, at_K))
    )
    v = heads(tensors, f"{name}.v", keys_KX)
    k, v = (part.repeat_interleave(len(q) // len(part), dim=0) for part in (k, v))
    scores = (q @ k.transpose(1, 2) / HEAD**0.5).masked_fill(~seen_QK, -torch.inf)
    return linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), tensors[f"{name}.o_proj.weight"])


def mlp(tensors: Tensors, name: str, x_TD: Tensor) -> Tensor:
    normed = rms(x_TD, tensors[f"{name}.post_attention_layernorm.weight"])
    gate, up = (linear(normed, tensors[f"{name}.mlp.{n}_proj.weight"]) for n in ("gate", "up"))
    return x_TD + linear(silu(gate) * up, tensors[f"{name}.mlp.down_proj.weight"])


def causal_layer(tensors: Tensors, name: str, x_TX: Tensor, residual_TD: Tensor) -> Tensor:
    """A layer whose attention reads ``x_TX`` as it is; entry t stands at position t."""
    at_T = torch.arange(len(x_TX))
    mixed = attention(tensors, f"{name}.self_attn", x_TX, x_TX, at_T, at_T, at_T[:, None] >= at_T)
    return mlp(tensors, name, residual_TD + mixed)


def full(tensors: Tensors, logits_N: Tensor, vocab: int) -> Tensor:
    """Over the target's vocabulary."""
    if "d2t" not in tensors:
        return logits_N
    whole = torch.full((*logits_N.shape[:-1], vocab), -torch.inf)
    whole[..., torch.arange(logits_N.shape[-1]) + tensors["d2t"]] = logits_N
    return whole


def peagle(tensors: Tensors, module: Any, tokens: list[int], hidden_TH: Tensor, count: int, mask: int) -> Tensor:
    """(count, V): entries of the text, then ``count - 1`` of the mask token and the learned vector."""
    embeds_TD = module.model.embed_tokens(torch.tensor([*tokens[1:], *[mask] * (count - 1)]))
    hidden_TH = torch.cat([hidden_TH, tensors["mask_hidden"][0].expand(count - 1, -1)])
    states_TD = linear(hidden_TH, tensors["fc.weight"])
    first = torch.cat(
        [
            rms(embeds_TD, tensors["midlayer.input_layernorm.weight"]),
            rms(states_TD, tensors["midlayer.hidden_norm.weight"]),
        ],
        dim=-1,
    )
    states_TD = causal_layer(tensors, "midlayer", first, states_TD)
    second = rms(states_TD, tensors["layers.1.input_layernorm.weight"])
    states_TD = causal_layer(tensors, "layers.1", second, states_TD)[-count:]
    logits_SN = linear(rms(states_TD, tensors["norm.weight"]), tensors["lm_head.weight"])
    return full(tensors, logits_SN, module.config.vocab_size)


@dataclass(frozen=True)
class Slot:
    """Of SpecBlock: a slot as the layers see it, and what it says."""

    place: int
    seen: tuple[int, ...]  # all slots before it on its path, by number, true entries first
    state_D: Tensor
    logs_V: Tensor
    rank: int


class SpecBlock:
    """All slots computed so far for one row; every block is computed from scratch over all slots that it sees."""

    def __init__(self, tensors: Tensors, module: Any, tokens: list[int], hidden_TH: Tensor) -> None:
        self.tensors, self.module = tensors, module
        self.embed, self.norm = module.model.embed_tokens, partial(_rms_of, tensors)
        self.conditions = list(linear(hidden_TH, tensors["fc.weight"]))  # of every slot
        self.tokens = list(tokens[1:])  # that every slot reads
        self.firsts = list(range(len(self.tokens)))  # the slot 0 of every slot
        self.places = list(range(len(self.tokens)))
        self.slots: list[Slot | None] = [None] * len(self.tokens)

    def block(self, above: Slot | None, token: int | None, size: int) -> list[Slot]:
        """The slots of a block after a slot and its token; without one, after the last true entry, which is slot 0."""
        if above is None:
            first, known = len(self.tokens) - 1, tuple(range(len(self.tokens) - 1))
        else:
            first, known = len(self.tokens), above.seen
            self._add(token, above.state_D, first, above.place + 1)
        for k in range(1, size):
            self._add(self.tokens[first], self.conditions[first], first, self.places[first] + k)
        numbers = [first, *range(len(self.tokens) - size + 1, len(self.tokens))]
        seen = (*known, *numbers)
        states_TD = self._forward(list(seen))[-size:]
        found = []
        for k, state_D in enumerate(states_TD):
            normed_D = self.norm(state_D, "norm.weight")
            logs_N = linear(normed_D, self.tensors["lm_head.weight"]).log_softmax(-1)
            logs_V = full(self.tensors, logs_N, self.module.config.vocab_size)
            at = (*known, *numbers[: k + 1])
            found.append(Slot(self.places[numbers[k]], at, state_D, logs_V, self._rank(normed_D, logs_N)))
        return found

    def _add(self, token: int | None, condition_D: Tensor, first: int, place: int) -> None:
        self.tokens.append(int(token))
        self.conditions.append(condition_D)
        self.firsts.append(first)
        self.places.append(place)

    def _forward(self, numbers: list[int]) -> Tensor:
        at_T = torch.tensor([self.places[n] for n in numbers])
        condition_TD = torch.stack([self.conditions[n] for n in numbers])
        embeds_TD = self.embed(torch.tensor([self.tokens[n] for n in numbers]))
        x_TX = torch.cat(
            [
                self.norm(embeds_TD, "layers.0.input_layernorm.weight"),
                self.norm(condition_TD, "layers.0.hidden_norm.weight"),
            ],
            dim=-1,
        )
        causal_TT = torch.ones(len(numbers), len(numbers), dtype=torch.bool).tril()
        mixed = attention(self.tensors, "layers.0.self_attn", x_TX, x_TX, at_T, at_T, causal_TT)
        x_TD = mlp(self.tensors, "layers.0", condition_TD + mixed)
        before_TD = torch.stack([x_TD[t] if self.firsts[n] == n else x_TD[t - 1] for t, n in enumerate(numbers)])
        x_TD = linear(torch.cat([x_TD, before_TD], dim=-1), self.tensors["shifts.0.weight"])
        normed_TD = self.norm(x_TD, "layers.1.input_layernorm.weight")
        mixed = attention(self.tensors, "layers.1.self_attn", normed_TD, normed_TD, at_T, at_T, causal_TT)
        return mlp(self.tensors, "layers.1", x_TD + mixed)

    def _rank(self, normed_D: Tensor, logs_N: Tensor) -> int:
        best = logs_N.sort(descending=True).values[:20]
        among = best.exp() / best.exp().sum()
        figures = [
            *best[:10],
            best[0] - best[1],
            best[0] - best[2],
            best[0] - best[4],
            among[0],
            -(among * among.log()).sum(),
        ]
        scores = linear(torch.cat([normed_D, torch.stack(figures)]), self.tensors["rank_head.weight"])
        return int((scores + self.tensors["rank_head.bias"]).argmax())

    def chain(self, count: int, size: int) -> list[int]:
        """The most probable token of every slot."""
        slots, found = self.block(None, None, size), list[int]()
        while len(found) < count:
            found += [int(slot.logs_V.argmax()) for slot in slots]
            slots = self.block(slots[-1], found[-1], size)
        return found[:count]

    def tree(self, depth: int, size: int, num_kept: int, leaves: int) -> set[tuple[int, ...]]:
        """The texts of the nodes that stay, by the rule of the paper as block_tree.py states it."""
        nodes: dict[tuple[int, ...], float] = {}
        starts: list[tuple[tuple[int, ...], float, Slot | None]] = [((), 0.0, None)]
        for generation in range(-(-depth // size)):
            ends = []  # score, order, text, slot, text of the block's first node after its fork
            for text, score, above in starts:
                ends += self._grow(nodes, text, score, self.block(above, text[-1] if text else None, size), depth)
            goes_on = (generation + 1) * size < depth
            chosen = sorted((end for end in ends if len(end[1]) < depth), key=lambda end: -end[0])[:leaves]
            starts = []
            for score, text, slot, replaced in chosen if goes_on else []:
                for gone in replaced:
                    del nodes[gone]
                starts.append((text, score, slot))
        return set(sorted(nodes, key=lambda text: -nodes[text])[:num_kept])

    def _grow(self, nodes: dict, text: tuple[int, ...], score: float, slots: list[Slot], depth: int) -> list:
        """Add a block's nodes; returns the ends that further blocks may start from."""
        slots = slots[: depth - len(text)]
        chain = [int(slot.logs_V.argmax()) for slot in slots]
        fork = next((k for k, slot in enumerate(slots) if slot.rank), None)
        ends = []
        for k, slot in enumerate(slots):
            above = (*text, *chain[:k])
            score_above = score + sum(float(one.logs_V.max()) for one in slots[:k])
            count = {1: 4, 2: 10}.get(slot.rank, 1) if k == fork else 1
            best = slot.logs_V.sort(descending=True)
            for rank in range(count):
                node = (*above, int(best.indices[rank]))
                nodes[node] = score_above + float(best.values[rank])
                later = [(*text, *chain[: n + 1]) for n in range(k + 1, len(slots))] if rank == 0 else []
                if (k == fork and count > 1) or (fork is None and k == len(slots) - 1):
                    ends.append((nodes[node], node, slot, later))
        return ends


def _rms_of(tensors: Tensors, x: Tensor, name: str) -> Tensor:
    return rms(x, tensors[name])


def dspark(
    tensors: Tensors, module: Any, tokens: list[int], hidden_TH: Tensor, count: int, mask: int, block: int
) -> tuple[list[int], list[float]]:
    """Tokens of a greedy draft and their confidences: slot by slot, with the bias of the token before."""
    num_known = len(tokens) - 1
    context_TD = rms(linear(hidden_TH, tensors["fc.weight"]), tensors["hidden_norm.weight"])
    x_SD = module.model.embed_tokens(torch.tensor([tokens[-1], *[mask] * (block - 1)]))
    at_K = torch.arange(num_known + block)
    seen_QK = torch.ones(block, len(at_K), dtype=torch.bool)
    for number in range(2):
        name = f"layers.{number}"
        normed_SD = rms(x_SD, tensors[f"{name}.input_layernorm.weight"])
        keys_KD = torch.cat([context_TD, normed_SD])
        x_SD = x_SD + attention(tensors, f"{name}.self_attn", normed_SD, keys_KD, at_K[num_known:], at_K, seen_QK)
        x_SD = mlp(tensors, name, x_SD)
    x_SD, before = rms(x_SD, tensors["norm.weight"]), tokens[-1]
    drafted, confidences = [], []
    for slot in range(count):
        known_R = tensors["markov_head.markov_w1.weight"][before]
        logits_V = module.lm_head(x_SD[slot]) + linear(known_R, tensors["markov_head.markov_w2.weight"])
        features = torch.cat([x_SD[slot], known_R])
        score = linear(features, tensors["confidence_head.proj.weight"], tensors["confidence_head.proj.bias"])
        confidences.append(float(score.sigmoid()))
        before = int(logits_V.argmax())
        drafted.append(before)
    return drafted, confidences


def last_keys_and_values(module: Any, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """(K, T, E) each: those of the target's last layer, from its own cache."""
    output = module(torch.tensor([tokens]), use_cache=True)
    last = (output.cache if hasattr(output, "cache") else output.past_key_values).layers[-1]
    return last.keys[0], last.values[0]


def longspec(tensors: Tensors, module: Any, tokens: list[int], read: tuple[Tensor, Tensor], window: int) -> Tensor:
    """(V) after the tokens, by the target's last keys and values of the first of them, which every token sees."""
    at_T, x_TD = torch.arange(len(tokens)), module.model.embed_tokens(torch.tensor(tokens))
    normed_TD, ago_TT = rms(x_TD, tensors["own_norm.weight"]), at_T[:, None] - at_T
    own = {f"own.{n}_proj.weight": tensors[f"own.{n}_proj.weight"] for n in "qkvo"}
    x_TD = x_TD + attention(own, "own", normed_TD, normed_TD, at_T, at_T, (ago_TT >= 0) & (ago_TT < window))
    q_HTE = rotated(heads(tensors, "cross.q", rms(x_TD, tensors["cross_norm.weight"])), at_T)
    k, v = (part.repeat_interleave(len(q_HTE) // len(part), dim=0) for part in read)
    mixed_HTE = (q_HTE @ k.transpose(1, 2) / HEAD**0.5).softmax(-1) @ v
    x_TD = x_TD + linear(mixed_HTE.transpose(0, 1).flatten(1), tensors["cross.o_proj.weight"])
    normed_TD = rms(x_TD, tensors["mlp_norm.weight"])
    gate, up = (linear(normed_TD, tensors[f"mlp.{n}_proj.weight"]) for n in ("gate", "up"))
    x_TD = x_TD + linear(silu(gate) * up, tensors["mlp.down_proj.weight"])
    logits_V: Tensor = module.lm_head(rms(x_TD, tensors["norm.weight"]))[-1]
    return logits_V
