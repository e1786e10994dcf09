"""Fits that one device could not hold: gradient checkpointing, sharded weights, and devices that come and go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_llama
from test_training_resume import TOKENIZER, curve, settings, write_corpus
from test_training_steps import Rows
from torch import Tensor, nn

from specdec.training import TrainingError, run_task
from specdec.training.blocks import Batch
from specdec.training.budget import Budget
from specdec.training.checkpoints import LAST
from specdec.training.config import HeadsConfig, LossConfig, PhaseConfig, StageConfig
from specdec.training.heads import KINDS, HeadsObjective
from specdec.training.loop import fit
from specdec.training.module import Objective, TrainingModule
from specdec.training.objectives import Distill, next_token
from specdec.training.recompute import enable_in, recomputing


def objective_of(kind: str, dtype: torch.dtype) -> tuple[nn.Module, Objective]:
    """A small module of a kind, and its objective."""
    target, cfg = small_llama(0, dtype), HeadsConfig(num_heads=3, num_layers=2, num_anchors=6)
    torch.manual_seed(0)
    if kind in KINDS:
        return KINDS[kind].build(target, cfg).to(dtype), HeadsObjective(KINDS[kind], target, cfg, 1)
    return small_llama(1, dtype).train(), {"lm": next_token, "distill": Distill(target, LossConfig(), 1)}[kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("lm", 0.7),
        ("distill", 0.7),
        ("eagle3", 0.7),
        ("peagle", 0.7),
        ("specblock", 0.7),
        ("dspark", 0.7),
        ("medusa", 1),
    ],
)
def test_gradients_are_equal_to_the_bit_in_less_memory(kind, most, dtype):
    """``most``: bytes that are held for the backward pass, as a share of those without checkpointing."""
    module, objective = objective_of(kind, dtype)
    batch: Batch = Rows(Budget(StageConfig()), 4).draw()
    found = []
    for enabled in (False, True):
        if enabled:
            enable_in(module)
        held: dict[int, int] = {}

        def keep(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), recomputing(enabled):
            loss = objective(module, batch, 0).total
        weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
        num_bytes = sum(size for place, size in held.items() if place not in weights)
        module.zero_grad()
        loss.backward()
        found.append((loss.detach(), [w.grad.clone() for w in module.parameters() if w.grad is not None], num_bytes))
    (loss, grads, plain), (again, same, fewer) = found
    assert torch.equal(loss, again)
    assert len(grads) == len(same) > 0
    assert all(map(torch.equal, grads, same))
    assert fewer < most * plain


def fitted(folder: Path) -> TrainingModule:
    cfg = settings(folder, "")
    cfg.fit.steps, cfg.fit.ema, cfg.fit.accumulate, cfg.fit.phases = 2, None, 1, [PhaseConfig(1.0, 20, 4)]
    module = TrainingModule("lm", small_llama(1, torch.float32, layers=1), next_token, Rows(Budget(cfg.fit), 4))
    fit(module, folder, cfg)
    return module


def test_a_fit_goes_on_with_as_many_devices_or_not_at_all(tmp_path):
    fitted(tmp_path)
    kept = torch.load(tmp_path / LAST, weights_only=True)
    assert kept["specdec"]["num_devices"] == 1
    kept["specdec"]["num_devices"] = 2
    torch.save(kept, tmp_path / LAST)
    with pytest.raises(
        TrainingError, match=r"device\.devices: the fit ran on 2 devices, now there are 1: .*go on with 2"
    ):
        fitted(tmp_path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    write_corpus(folder / "text")
    sizes = {"vocab_size": 2048, "max_position_embeddings": 128, "initializer_range": 0.2}
    small_llama(0, torch.float32, layers=2, **sizes, eos_token_id=0).save_pretrained(folder / "target")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cfg: setattr(cfg, "task", "heads"), "device.strategy=fsdp with task=heads: .*use ddp"),
        (lambda cfg: setattr(cfg.fit, "ema", 0.5), "device.strategy=fsdp with fit.ema=0.5: .*set fit.ema=null"),
        (lambda cfg: setattr(cfg, "precision", "64-true"), "fsdp with precision=64-true: Lightning shards 32-true"),
    ],
)
def test_what_cannot_be_sharded_is_refused(root, change, message):
    cfg = settings(root, "refused")
    cfg.device.strategy, cfg.fit.ema = "fsdp", None
    change(cfg)
    with pytest.raises(TrainingError, match=message):
        run_task("", cfg)


def train(root: Path, name: str, rows: int, *launched: str, launcher: tuple[str, ...] = (), check: bool = True) -> str:
    """Six steps of a draft on the command line; returns what went wrong."""
    shape = "draft_model={num_layers: 2, hidden_size: 24, intermediate_size: 32, num_heads: 2, num_kv_heads: 1}"
    command = [
        *(sys.executable, *launcher, "train.py", "task=distill", "new_draft=random", shape, *launched),
        *(f"frozen={root / 'target'}", f"tokenizer={TOKENIZER}", "distill.data=corpus", f"output_dir={root / name}"),
        *("precision=32-true", "threads=1", "progress=false", "validation.every=3", "log.every=1"),
        *("corpus.source=text", f"corpus.path={root / 'text'}", "corpus.heldout_percent=20"),
        *("heldout.max_tokens=40", "heldout.num_prompts=4", "validation.num_prompts=2", "validation.new_tokens=4"),
        *("fit.steps=6", "fit.warmup_steps=1", f"fit.phases=[{{share: 1.0, block: 24, batch: {rows}}}]"),
        "device.accelerator=cpu",
    ]
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert not check or result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.nightly
def test_sharded_weights_learn_what_one_process_learns(root):
    """Two processes with half of every weight and half of the rows each; and they go on from a whole checkpoint."""
    sharded = ("device.devices=2", "device.strategy=fsdp")
    train(root, "one", 8)
    train(root, "two", 4, *sharded)
    whole, fitted = curve(root / "two"), root / "two/fit"
    one, two = (torch.tensor([float(loss) for _, loss, _ in lines]) for lines in (curve(root / "one"), whole))
    torch.testing.assert_close(two, one, rtol=1e-6, atol=0)
    assert torch.load(fitted / "best.ckpt", weights_only=True)["global_step"] == 3
    (fitted / "best.ckpt").replace(fitted / LAST)
    (fitted / "record.json").unlink()
    assert "the fit ran on 2 devices, now there are 1" in train(root, "two", 4, check=False)
    train(root, "two", 4, *sharded)
    assert curve(root / "two") == whole
    assert (root / "two/export/model.safetensors").exists()


@pytest.mark.nightly
def test_the_command_of_several_machines_on_one(root):
    """torchrun starts two processes; the first one makes the data."""
    launcher = ("-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--standalone")
    train(root, "alone", 8)
    train(root, "launched", 4, "device.devices=2", "device.num_nodes=1", "device.strategy=ddp", launcher=launcher)
    one, two = (torch.tensor([float(x) for _, x, _ in curve(root / name)]) for name in ("alone", "launched"))
    torch.testing.assert_close(two, one, rtol=1e-6, atol=0)
    assert (root / "launched/export/model.safetensors").exists()
