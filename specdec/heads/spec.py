"""What kind of head a folder holds, by its config and the names of its tensors. Imports no torch.

Tensors get the names that `speculators` uses, whatever their layout:
layouts are `original` (that of the method's authors), `speculators`, `specdec` (what train.py writes), and `in its
target`: an MTP layer among the weights of its target, whose names `transformers` knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from specdec.core.outputs import NORMED
from specdec.errors import ConfigError
from specdec.heads.config_check import checked
from specdec.heads.folder import Folder, TensorInfo

KINDS = ("eagle", "eagle3", "peagle", "specblock", "dflash", "dspark", "mtp", "medusa", "longspec")
OF_LAYERS = ("eagle3", "peagle", "specblock")
"""Kinds whose first layer reads an embedding and hidden states of several of the target's layers side by side."""
ORIGINAL, SPECULATORS, SPECDEC, IN_TARGET = "original", "speculators", "specdec", "in its target"
FULL, SLIDING = "full_attention", "sliding_attention"
MTP_LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
"""Of a target's config: how many MTP layers its checkpoint holds."""
_MASK_TOKENS = ("mask_token_id", "dspark_noise_token_id", "pard_token", "ptd_token_id")
_MEDUSA_TENSOR = re.compile(r"(medusa_heads?\.)?\d+\.\d+\.(linear\.)?(weight|bias)")
_RENAMED = {
    ORIGINAL: (
        (r"^model\.", ""),
        (r"^midlayer\.", "layers.0."),
        (r"^mtp_layers\.", "layers."),
        (r"^medusa_heads?\.", ""),
    ),
    SPECULATORS: ((r"^mtp_layers\.", "layers."),),
    IN_TARGET: (),
    SPECDEC: ((r"^project\.", "fc."), (r"^body\.", "")),
}
_IGNORED = re.compile(r"rotary_emb\.|^verifier_|\.inv_freq$|^mask_embedding")
"""Tensors that a head does not need: tables, copies of the target's weights for training, and a DSpark placeholder."""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """A head as its folder describes it."""

    name: str  # of the folder, as the user gave it
    kind: str
    layout: str
    config: dict[str, Any]
    layer: dict[str, Any]  # the config of its decoder layers
    tensors: dict[str, TensorInfo]  # empty where they are in a pickle

    @property
    def hidden_size(self) -> int:
        """Width of the head."""
        return int(self.layer["hidden_size"])

    @property
    def num_layers(self) -> int:
        """Its decoder layers."""
        return 1 if self.kind == "mtp" else int(self.layer.get("num_hidden_layers", 1))

    @property
    def draft_vocab_size(self) -> int | None:
        """Tokens that it can draft; None: all of the target's."""
        size = self.config.get("draft_vocab_size")
        return None if size is None or size == self.vocab_size else int(size)

    @property
    def vocab_size(self) -> int:
        """Of the target that it was trained for."""
        if self.kind == "medusa" and "vocab_size" not in self.layer:  # its config names none
            rows = [info.shape[0] for name, info in self.tensors.items() if name.count(".") == 2 and info.shape]
            return rows[0] if rows else 0
        return int(self.layer["vocab_size"])

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting of the head: block drafters in the original layout may keep theirs in a part of their own."""
        return self._own.get(name, self.config.get(name, default))

    @property
    def mask_token_id(self) -> int | None:
        """The token that stands for one that is not known yet."""
        return next((int(found) for name in _MASK_TOKENS if (found := self.setting(name)) is not None), None)

    @property
    def block_size(self) -> int:
        """Slots of a block, with the anchor."""
        usual = 4 if self.kind == "specblock" else 16 if self.layout == ORIGINAL else 8
        return int(self.setting("block_size", usual))

    @property
    def windows(self) -> list[int | None]:
        """Of each layer: how many positions it sees, its own among them; None: all. 0: the config forgets to say."""
        kinds = [SLIDING] * self.num_layers if self.setting("use_swa") else self.layer.get("layer_types") or ()
        size = self.setting("swa_window_size", self.layer.get("sliding_window")) or 0
        return [size if n < len(kinds) and kinds[n] == SLIDING else None for n in range(self.num_layers)]

    @property
    def causal(self) -> list[bool]:
        """Of each layer of a block drafter: whether a slot sees no later slots."""
        sliding = [window is not None for window in self.windows]
        if self.layout == SPECULATORS:
            return [part and not self.config.get("sliding_window_non_causal") for part in sliding]
        told = self.config.get("is_causal", self._own.get("causal"))
        return sliding if told is None else [bool(told)] * len(sliding)

    @property
    def num_slots(self) -> int | None:
        """Tokens per round that it was trained to draft, where the folder tells it."""
        methods = (self.config.get("speculators_config") or {}).get("proposal_methods") or [{}]
        count = methods[0].get("speculative_tokens")
        return None if count is None else int(count)

    @property
    def trained_for(self) -> str | None:
        """The target's name, where the folder tells it."""
        verifier = (self.config.get("speculators_config") or {}).get("verifier") or {}
        return verifier.get("name_or_path")

    @property
    def _own(self) -> dict[str, Any]:
        """Settings of block drafters in the original layout."""
        own: dict[str, Any] = self.config.get("dflash_config") or {}
        return own

    def hidden_layers(self, num_target_layers: int) -> tuple[int, ...]:
        """The target's hidden states that it reads, as `Drafter.hidden_layers` numbers them."""
        n = num_target_layers
        return tuple(NORMED if number == n else number for number in self.layer_ids(n))

    def layer_ids(self, num_target_layers: int) -> list[int]:
        """The same by the numbers of ``hidden_states`` in `transformers`: the last are those after the norm."""
        n = num_target_layers
        if self.kind in ("eagle", "medusa", "mtp"):
            return [n]
        if self.kind == "longspec":
            return [n - 1]
        names = ("eagle_aux_hidden_state_layer_ids", "aux_hidden_state_layer_ids", "target_layer_ids")
        ids = next((self.config[name] for name in names if self.config.get(name)), None)
        if self.layout == ORIGINAL and self.kind in ("dflash", "dspark"):  # these number the layers' outputs
            ids = self._own.get("target_layer_ids", ids)
            if ids is None:
                count = self.num_layers
                ids = [n // 2] if count == 1 else [round(1 + i * (n - 4) / (count - 1)) for i in range(count)]
            return [int(number) + 1 for number in ids]
        if ids is None and isinstance(self.config.get("eagle_config"), dict):
            ids = self.config["eagle_config"].get("eagle_aux_hidden_state_layer_ids")
        return [min(2, n), n // 2, max(n - 3, 0)] if ids is None else [int(number) for number in ids]


def recognised(folder: Folder, setting: str = "drafter.path") -> HeadSpec:
    """The head in a folder.

    Raises:
        ConfigError: it holds none of a known kind.
    """
    config = checked(folder.config, f"{setting}={folder.name}")
    kind, layout = _kind_of(replace(folder, config=config), setting)
    if kind not in KINDS:
        raise ConfigError(f"{setting}={folder.name}: a head of the kind {kind!r}, and known are {', '.join(KINDS)}")
    nested = {SPECULATORS: "transformer_layer_config", IN_TARGET: "text_config"}.get(layout)
    layer = config.get(nested, config if layout == IN_TARGET else None) if nested else config
    if not isinstance(layer, dict):
        raise ConfigError(f"{setting}={folder.name}: config.json has no transformer_layer_config")
    needed = ("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads")
    missing = [name for name in needed if not isinstance(layer.get(name), int)]
    if missing and kind != "medusa" and layout not in (SPECDEC, IN_TARGET):
        raise ConfigError(f"{setting}={folder.name}: config.json of this {kind} head has no {missing[0]}")
    tensors = folder.tensors
    if layout == IN_TARGET:
        tensors = {}
    elif kind == "mtp" and layout == ORIGINAL:  # among all weights of a target; the first layer is used for every step
        tensors = {name: info for name, info in tensors.items() if "mtp_layers.0." in name}
    return HeadSpec(folder.name, kind, layout, config, layer, renamed(layout, tensors.items()))


def renamed(layout: str, tensors: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Tensors by the names of `speculators`, without those that no head needs."""
    found = {}
    for name, tensor in tensors:
        new = name
        for pattern, replacement in _RENAMED[layout]:
            new = re.sub(pattern, replacement, new)
        if not _IGNORED.search(new):
            found[new] = tensor
    return found


def _kind_of(folder: Folder, setting: str) -> tuple[str, str]:
    config, names = folder.config, folder.tensors
    if "drafter" in config:
        return str(config["drafter"]), SPECDEC
    if "speculators_model_type" in config:
        return str(config["speculators_model_type"]), SPECULATORS
    architectures = " ".join(map(str, config.get("architectures") or ())).lower()
    if "medusa_num_heads" in config or (names and all(map(_MEDUSA_TENSOR.fullmatch, names))):
        return "medusa", ORIGINAL
    if "hydra_num_heads" in config:
        return "hydra", ORIGINAL
    if "dspark" in architectures or any(name.startswith("markov_head.") for name in names):
        return "dspark", ORIGINAL
    if "dflash2" in architectures or any(name.startswith("candidate_selector.") for name in names):
        return "dflash2", ORIGINAL
    if "dflash" in architectures or "dflash_config" in config:
        return "dflash", ORIGINAL
    if "mask_hidden" in names or config.get("parallel_drafting"):
        return "peagle", ORIGINAL
    if "eagle3" in architectures or "draft_vocab_size" in config or any(n.startswith("midlayer.") for n in names):
        return "eagle3", ORIGINAL
    is_small = config.get("num_hidden_layers") == 1 and not any("layernorm" in n and "input" in n for n in names)
    if any(name.removeprefix("model.") == "fc.weight" for name in names) or (folder.pickles and is_small):
        return "eagle", ORIGINAL
    if any("mtp_layers." in name for name in names):
        return "mtp", ORIGINAL
    if any(config.get(name) for name in MTP_LAYERS):
        return "mtp", IN_TARGET
    what = f"architectures {config['architectures']}" if config.get("architectures") else "no known fields"
    raise ConfigError(
        f"{setting}={folder.name}: no draft head that is known here ({', '.join(KINDS)}): config.json has {what}"
    )
