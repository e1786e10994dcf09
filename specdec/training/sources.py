"""What a task reads: corpus, tokenizer and, for drafts and heads, the frozen target; each is loaded on first use."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from specdec.assets import local_path
from specdec.config.schema import PairConfig
from specdec.core.files import write_lines
from specdec.errors import SpecdecError
from specdec.models.causal_lm import CausalLM
from specdec.models.checkpoints import load_model, load_tokenizer
from specdec.models.compatibility import supported
from specdec.models.tensor_parallel import whole
from specdec.models.vocabulary import check_tokenizer, num_ids
from specdec.training import TrainingError
from specdec.training.blocks import BlockStream, MixedBlocks
from specdec.training.budget import Budget
from specdec.training.config import TrainConfig
from specdec.training.corpus import Corpus, open_corpus, write_corpus
from specdec.training.decoding import stop_ids_of
from specdec.training.device import device_of, frozen_dtype
from specdec.training.generation import generate_outputs
from specdec.training.heldout import mixed_prompts
from specdec.training.questions import FILE as QUESTIONS
from specdec.training.questions import write_questions
from specdec.training.split import led_stage, num_parts
from specdec.training.stages import Record, run_stage
from specdec.training.tokenizer import encode_corpus, train_tokenizer

HELDOUT_SEED = 1234
_NOT_OF_OUTPUTS = ("_name_or_path", "transformers_version", "dtype", "use_cache", "distributed_config")
"""What a config says besides what its model computes; outputs of other number formats are told apart elsewhere."""


class Sources:
    """Corpus, tokenizer and target of one config; what is computed from them is kept in the folders of the stages."""

    def __init__(self, cfg: TrainConfig, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder

    @cached_property
    def corpus(self) -> Corpus:
        """Training and held-out text, written to the stage `documents` once; the target may write it (`questions`)."""
        cfg = self.cfg.corpus
        if cfg.source == "target":
            led_stage("questions", self.folder, self.cfg, self.ask, lambda: self.target)
            path = str(self.folder / "questions" / QUESTIONS)
            cfg = replace(cfg, source="jsonl", path=path, column="messages")
        run_stage("documents", self.folder, self.cfg.force, lambda out: write_corpus(cfg, out))
        return open_corpus(self.folder / "documents")

    @cached_property
    def target(self) -> CausalLM:
        """The frozen target, on the device of this process, in the number format of its matrix products.

        Raises:
            TrainingError: it cannot be loaded, or its vocabulary does not hold the tokenizer's tokens.
        """
        pair, where, count = PairConfig(name="frozen"), device_of(self.cfg), num_parts(self.cfg)
        try:
            module = load_model("target", self.cfg.frozen, pair, frozen_dtype(self.cfg), where, count)
            target = supported(module, f"frozen={self.cfg.frozen}")
            remedy = "set tokenizer to the target's own"
            check_tokenizer(self.tokenizer, target.vocab_size, f"frozen={self.cfg.frozen}", remedy)
        except SpecdecError as error:
            raise TrainingError(str(error).replace("pair.target", "frozen").replace("runner.", "device.")) from error
        return target

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the config names, or the frozen target's, or (task=lm) one trained on the corpus."""
        if self.cfg.task == "lm" and self.cfg.tokenizer is None:
            name = str(self.folder / "tokens")
            if not (Path(name) / "tokenizer.json").exists():
                texts = (file.text for part in self.corpus.parts for file in part.train)
                return train_tokenizer(texts, self.cfg.vocab_size, self.cfg.context_length, Path(name))
        else:
            name = self.cfg.tokenizer or _tokenizer_of(self.cfg.frozen)
        try:
            return load_tokenizer(name, PairConfig(name="frozen"))
        except SpecdecError as error:
            raise TrainingError(str(error).replace("pair.tokenizer", "tokenizer")) from error

    @property
    def vocab_size(self) -> int:
        """Vocabulary of a model for this tokenizer."""
        return num_ids(self.tokenizer)

    @property
    def special_ids(self) -> tuple[int | None, int | None, int | None]:
        """The tokens that begin, end and pad texts."""
        return self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the frozen target's weights and config: the same weights rotated otherwise are another target."""
        theirs = self.target.module.config.to_dict()
        told = {key: theirs[key] for key in sorted(theirs) if key not in _NOT_OF_OUTPUTS}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        for name, value in sorted(self.target.module.state_dict().items()):
            digest.update(name.encode() + whole(value.detach()).cpu().float().numpy().tobytes())
        return digest.hexdigest()[:16]

    def ask(self, out: Path) -> Record:
        """Stage: questions of the frozen target's own."""
        stops = stop_ids_of(self.target.module)
        cfg = self.cfg
        return write_questions(
            self.target, self.tokenizer, cfg.questions, cfg.seed, out, stop_ids=stops, made_by=self.fingerprint
        )

    def encode(self, out: Path) -> Record:
        """Stage: both sides of the corpus as token arrays."""
        return encode_corpus(self.corpus, self.tokenizer, self.cfg.seed, self.vocab_size, out)

    def generate(self, out: Path) -> Record:
        """Stage: the frozen target's outputs, for OutputStream."""
        cfg, stops = self.cfg, stop_ids_of(self.target.module)
        return generate_outputs(
            self.target,
            self.corpus,
            self.tokenizer,
            cfg.greedy,
            cfg.seed,
            out,
            stop_ids=stops,
            made_by=self.fingerprint,
        )

    def load(self, split: str) -> Any:
        """The token array of one side, mapped from disk; of a mixture that of its first part."""
        return np.load(self.folder / f"tokens/{split}.npy", mmap_mode="r")

    def load_counted(self, split: str) -> Any:
        """Which of these tokens are to be predicted; None: all of them."""
        path = self.folder / f"tokens/{split}_counted.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None

    def blocks(self, budget: Budget) -> BlockStream:
        """Batches of blocks of the training tokens, of all parts of a mixture."""
        names = ["train", *(f"train_{number}" for number in range(1, len(self.corpus.parts)))]
        streams = [
            BlockStream(self.load(name), budget, self.cfg.seed, counted=self.load_counted(name)) for name in names
        ]
        if len(streams) == 1:
            return streams[0]
        return MixedBlocks(streams, self.corpus.shares, budget, self.cfg.seed)

    def cut_prompts(self, out: Path) -> Record:
        """Stage: held-out prompts, the same for every seed of training."""
        is_plain = not any(part.is_chat for part in self.corpus.parts) and self.cfg.task != "lm"
        if is_plain and getattr(self.tokenizer, "chat_template", None):
            print(
                "note: the corpus is plain text, but the tokenizer has a chat template, in which `run.py` asks: give "
                "conversations (corpus.column=messages), or set data.chat_template=never in runs",
                flush=True,
            )
        prompts = mixed_prompts(self.corpus, self.tokenizer, self.cfg.heldout, HELDOUT_SEED)
        write_lines(out / "heldout.jsonl", prompts)
        return {"prompts": len(prompts)}


def _tokenizer_of(name: str) -> str:
    """The folder of a model's tokenizer: its own, or `tokenizer` beside it; otherwise the name itself."""
    folder = local_path(name)
    for place in (folder, folder.parent / "tokenizer"):
        if (place / "tokenizer.json").exists():
            return str(place)
    return name
