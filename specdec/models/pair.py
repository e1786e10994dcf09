"""A pair of target and draft with their tokenizer: loaded once per sweep, and checked to fit together."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from specdec.assets import local_path
from specdec.config.identity import hash_files, input_hashes
from specdec.config.plugins import declared
from specdec.config.processes import num_processes
from specdec.config.schema import PairConfig, RunConfig
from specdec.errors import ConfigError, PairError
from specdec.models.causal_lm import CausalLM
from specdec.models.checkpoints import load_model, load_tokenizer
from specdec.models.compatibility import supported
from specdec.models.random_weights import random_model, synthetic_models
from specdec.models.vocabulary import check_fit
from specdec.registry import unknown

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
WEIGHTS = ("pretrained", "random", "synthetic")
FALLBACK_TOKENIZER = "asset:tiny/tokenizer"
_WEIGHT_FILES = (".safetensors", ".json", ".bin")
_HASHED_WEIGHT_BYTES = 256 * 1024 * 1024


@dataclass(slots=True)
class Pair:
    """Two models of one vocabulary, and the tokenizer of both."""

    name: str
    target: CausalLM
    draft: CausalLM | None
    tokenizer: Any
    stop_ids: frozenset[int]
    fingerprint: str  # changes whenever the target's weights do
    draft_fingerprint: str | None  # the same of the draft; None without one
    notes: list[str]
    draft_tokenizer: Any = None  # if the draft has its own vocabulary (drafter=retokenize)

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, with special tokens and without clean-up of spaces."""
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    @property
    def context_length(self) -> int:
        """Longest row that both models can hold, in tokens."""
        return min(model.context_length for model in (self.target, self.draft) if model is not None)


_cache: dict[str, Pair] = {}


def load_pair(config: RunConfig) -> Pair:
    """The pair of a resolved run config; the last one loaded is kept for the next point of a sweep."""
    parts = [asdict(config.pair), asdict(config.runner)]
    files = input_hashes(config, "pair.")  # the weights in a folder may have changed
    key = json.dumps([*parts, config.weights, config.seed, _retokenizes(config), files], sort_keys=True)
    if key not in _cache:
        _cache.clear()  # before loading: two large pairs need not fit together
        _cache[key] = _load(config)
    return _cache[key]


def _load(config: RunConfig) -> Pair:
    if config.weights not in WEIGHTS:
        raise ConfigError(unknown("weights", config.weights, WEIGHTS))
    if config.runner.dtype not in DTYPES:
        raise ConfigError(unknown("runner.dtype", config.runner.dtype, DTYPES))
    device, dtype = choose_device(config.runner.accelerator), DTYPES[config.runner.dtype]
    notes: list[str] = []
    if config.weights == "pretrained":
        _refuse_overrides(config.pair)
        if not config.pair.target:
            raise ConfigError(f"pair={config.pair.name} has no checkpoint: set pair.target, or weights=random")
        num_parts = num_processes(config.runner) if config.runner.tensor_parallel else 1
        target = load_model("target", config.pair.target, config.pair, dtype, device, num_parts)
        draft = load_model("draft", config.pair.draft, config.pair, dtype, device) if config.pair.draft else None
    elif config.weights == "random":
        target, draft = (random_model(role, config.pair, config.seed, dtype, device) for role in ("target", "draft"))
    else:
        target, draft = synthetic_models(config.pair, config.seed, dtype, device)
    tokenizer = _tokenizer(config, notes)
    pair = Pair(
        name=config.pair.name,
        target=supported(target, f"pair.target={config.pair.target or config.pair.name}"),
        draft=supported(draft, f"pair.draft={config.pair.draft or config.pair.name}") if draft is not None else None,
        tokenizer=tokenizer,
        stop_ids=_stop_ids(target, tokenizer) if config.weights == "pretrained" else frozenset(),
        fingerprint=_fingerprint(config, "target", target),
        draft_fingerprint=_fingerprint(config, "draft", draft) if draft is not None else None,
        notes=notes,
    )
    notes += [note for model in (pair.target, pair.draft) if model is not None for note in model.notes]
    if _retokenizes(config) and pair.draft is not None:
        name = config.pair.draft_tokenizer or (config.pair.draft if config.weights == "pretrained" else None)
        pair.draft_tokenizer = load_tokenizer(name, config.pair) if name else tokenizer
    _check_fit(config, pair)
    return pair


def _retokenizes(config: RunConfig) -> bool:
    """Whether the models exchange text, so that their vocabularies may differ."""
    return declared(config, "drafter").by_text


def choose_device(name: str) -> torch.device:
    """``auto`` is a GPU, or the CPU without one; of several GPUs, the current one of this process."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runner.accelerator=cuda: this machine has no CUDA device; use runner.accelerator=cpu")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")


def _refuse_overrides(pair: PairConfig) -> None:
    for key in ("num_layers", "hidden_size", "vocab_size"):
        if (value := getattr(pair, key)) is not None:
            raise ConfigError(f"pair.{key}={value} changes the architecture: it needs weights=random")


def _tokenizer(config: RunConfig, notes: list[str]) -> Any:
    name = config.pair.tokenizer or (config.pair.target if config.weights == "pretrained" else None)
    if name is None and config.pair.target and local_path(config.pair.target).is_dir():
        name = config.pair.target
    if name is None:
        notes.append("no tokenizer given: prompts are encoded with the built-in pair's, whose ids are all valid here")
        name = FALLBACK_TOKENIZER
    return load_tokenizer(name, config.pair)


def _stop_ids(target: Any, tokenizer: Any) -> frozenset[int]:
    eos = target.generation_config.eos_token_id
    if eos is None:
        eos = tokenizer.eos_token_id
    return frozenset([] if eos is None else [eos] if isinstance(eos, int) else eos)


def _check_fit(config: RunConfig, pair: Pair) -> None:
    """Refuse pairs of different vocabularies."""
    by_text = _retokenizes(config)
    check_fit(pair.target, pair.draft, pair.tokenizer, pair.draft_tokenizer, by_text=by_text, settings=True)
    if pair.draft is None or by_text:
        return
    folder = local_path(config.pair.draft or "")
    if config.weights == "pretrained" and config.pair.tokenizer is None and config.pair.draft:
        has_own = not folder.is_dir() or (folder / "tokenizer.json").exists()
        if has_own:
            _compare_tokenizers(pair.tokenizer, load_tokenizer(config.pair.draft, config.pair))


def _compare_tokenizers(target: Any, draft: Any) -> None:
    ids = draft.get_vocab()
    for token, number in target.get_vocab().items():
        if ids.get(token, number) != number:
            raise PairError(
                f"tokenizers differ: {token!r} is {number} for the target and {ids[token]} for the draft; "
                "choose a draft with the target's tokenizer (pair.draft), or drafter=retokenize"
            )
    for special in ("bos_token_id", "eos_token_id"):
        ours, theirs = getattr(target, special), getattr(draft, special)
        if None not in (ours, theirs) and ours != theirs:
            raise PairError(f"{special} differs: target {ours}, draft {theirs}; set pair.tokenizer to choose one")


def _shape_keys(config: RunConfig, role: str) -> tuple[str, ...]:
    """Settings of the pair that decide random or synthetic weights; its name, for example, does not."""
    if config.weights == "synthetic":  # both come from the target
        return ("target", "target_architecture", "num_layers", "hidden_size", "vocab_size", "synthetic")
    return (role, f"{role}_architecture", "num_layers", "hidden_size", "vocab_size")


def _fingerprint(config: RunConfig, role: str, module: Any) -> str:
    """A hash of what decides a model's weights: file contents, or names, sizes and times of large files."""
    if config.weights == "pretrained":
        return fingerprint_of(getattr(config.pair, role) or "", module)
    settings = asdict(config.pair)
    described = {key: settings[key] for key in _shape_keys(config, role)}
    return _short_hash(json.dumps([described, config.weights, config.seed, torch.__version__], sort_keys=True))


def fingerprint_of(name: str, module: Any) -> str:
    """The same of a checkpoint, by its folder, file or Hub name."""
    folder = local_path(name)
    if not folder.exists():
        return _short_hash(f"{name}@{getattr(module.config, '_commit_hash', None)}")
    files = [folder]
    if folder.is_dir():
        files = sorted(file for file in folder.glob("*") if file.suffix in _WEIGHT_FILES)
    return hash_files(files, _HASHED_WEIGHT_BYTES)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
