"""One optimizer step, whatever it is split into: micro-batches and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_llama
from test_training_resume import TOKENIZER, curve, settings, write_corpus

from specdec.training.blocks import Batch, Stream
from specdec.training.budget import Budget
from specdec.training.config import HeadsConfig, LossConfig, PhaseConfig
from specdec.training.heads import KINDS, HeadsObjective
from specdec.training.loop import fit
from specdec.training.losses import output_mask
from specdec.training.module import TrainingModule
from specdec.training.objectives import Distill, next_token


class Rows(Stream):
    """Rows of different numbers of counted tokens, in their order."""

    def __init__(self, budget: Budget, size: int) -> None:
        self.budget, self.size, self.place = budget, size, {"batches": 0}
        generator = torch.Generator().manual_seed(1)
        self.ids_BT = torch.randint(61, (24, 20), generator=generator)
        self.counted_BT = output_mask([3] * 24, [5 + 7 * i % 15 for i in range(24)], 20)

    def draw(self) -> Batch:
        first = self.place["batches"] * self.size
        self.place = {"batches": self.place["batches"] + 1}
        rows = [row % 24 for row in range(first, first + self.size)]
        return Batch(self.ids_BT[rows], self.counted_BT[rows], self.place)


@pytest.mark.parametrize("kind", ["lm", "distill", "medusa", "eagle"])
def test_a_step_is_the_same_in_one_batch_or_in_two(kind, tmp_path):
    """Losses and weights: every counted token weighs the same, whichever batch it is in."""
    found = []
    for accumulate in (1, 2):
        cfg = settings(tmp_path, kind)
        cfg.fit.steps, cfg.fit.accumulate, cfg.fit.ema, cfg.fit.warmup_steps = 3, accumulate, None, 0
        cfg.fit.phases, cfg.fit.lr = [PhaseConfig(1.0, 20, 8 // accumulate)], 1e-2
        target, cfg.heads = small_llama(0, torch.float32), HeadsConfig(num_heads=2)
        torch.manual_seed(0)
        model = KINDS[kind].build(target, cfg.heads) if kind in KINDS else small_llama(1, torch.float32, layers=1)
        objectives = {"lm": next_token, "distill": Distill(target, LossConfig(), 1)}
        objective = objectives[kind] if kind in objectives else HeadsObjective(KINDS[kind], target, cfg.heads, 1)
        module = TrainingModule(kind, model, objective, Rows(Budget(cfg.fit), 8 // accumulate))
        (tmp_path / str(accumulate)).mkdir()
        record = fit(module, tmp_path / str(accumulate), cfg)
        assert record["tokens"] == 3 * 8 * 20
        found.append((module.losses, [weight.detach() for weight in module.trained_parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


@pytest.mark.nightly
def test_two_processes_end_together_by_the_clock(tmp_path):
    """The first one's clock decides for both; the last step is kept, and the run exported."""
    write_corpus(tmp_path / "text")
    sizes = {"vocab_size": 2048, "max_position_embeddings": 128}
    small_llama(0, torch.float32, layers=1, **sizes, eos_token_id=0).save_pretrained(tmp_path / "target")
    command = [
        *(sys.executable, "train.py", "task=distill", f"frozen={tmp_path / 'target'}", f"tokenizer={TOKENIZER}"),
        *("precision=32-true", "threads=1", "progress=false", "keep=last", "validation.every=40", "log.every=1"),
        *("corpus.source=text", f"corpus.path={tmp_path / 'text'}", "corpus.heldout_percent=20"),
        *("heldout.max_tokens=40", "heldout.num_prompts=4", "validation.num_prompts=2", "validation.new_tokens=4"),
        *("distill.data=corpus", "fit.steps=100000", "fit.minutes=0.04", "fit.checkpoint_every=100000"),
        "draft_model.num_layers=1",
        *("fit.phases=[{share: 0.5, block: 24, batch: 2}, {share: 0.5, block: 16, batch: 2}]",),
        *("device.accelerator=cpu", "device.devices=2", "device.strategy=ddp", f"output_dir={tmp_path}"),
    ]
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=150)
    assert result.returncode == 0, result.stderr
    kept = torch.load(tmp_path / "fit/last.ckpt", weights_only=True)
    assert kept["global_step"] == len(curve(tmp_path)) > 1
    assert 2.4 <= kept["specdec"]["spent_s"] < 60
    assert os.path.exists(tmp_path / "export/model.safetensors")
