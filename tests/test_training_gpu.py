"""Training on a GPU, as far as that shows without one: steps and validations on tensors that pretend to be there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import small_llama
from pretend_cuda import PretendCuda
from test_training_resume import settings, write_corpus

from specdec.training import TrainingError, run_task
from specdec.training.config import DeviceConfig, ModelConfig, OutputsConfig, PhaseConfig, TrainConfig
from specdec.training.device import device_of, frozen_dtype
from specdec.training.sources import Sources


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    write_corpus(folder / "text")
    sizes = {"vocab_size": 2048, "max_position_embeddings": 128}
    small_llama(0, torch.float32, layers=2, **sizes, eos_token_id=0).save_pretrained(folder / "target")
    return folder


def one_step(root: Path, task: str, kind: str = "medusa") -> TrainConfig:
    """Two steps, a validation after each, and the export."""
    cfg = settings(root, f"{task}-{kind}")
    cfg.task, cfg.heads.kind, cfg.heads.num_heads, cfg.heads.layer, cfg.device.accelerator = task, kind, 2, 1, "gpu"
    cfg.fit.steps, cfg.fit.phases, cfg.validation.every, cfg.keep = 2, [PhaseConfig(1.0, 24, 2)], 1, "best"
    cfg.target_model, cfg.context_length, cfg.distill.data = ModelConfig(1, 24, 32, 2, 1), 128, "outputs"
    cfg.greedy = OutputsConfig(num_batches=1, batch=2, new_tokens=8, max_prompt_tokens=12)
    cfg.distill.on_policy = 0.5 if task == "distill" else 0.0
    some = cfg.selector
    some.draft, some.temperatures, some.num_paths, some.depth, some.samples = str(root / "target"), [1.0], 2, 2, 1
    some.num_batches, some.rows, some.new_tokens, some.every, some.steps, some.batches = 2, 2, 8, 4, 2, [1]
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [pytest.param("", marks=pytest.mark.nightly), "eagle", "eagle3", "peagle", "dspark", "medusa", "ppd", "early_exit"],
)
def test_a_target_in_bfloat16_teaches_under_a_mixed_precision(root, kind):
    """Half the memory of float32; weights that are trained stay in float32."""
    cfg = one_step(root, "heads" if kind else "distill", kind)
    cfg.output_dir, cfg.device.accelerator, cfg.precision = f"{cfg.output_dir}-bf16", "cpu", "bf16-mixed"
    cfg.frozen_dtype = "bfloat16"
    run_task("", cfg)
    kept = torch.load(f"{cfg.output_dir}/fit/last.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.float32}
    target = Sources(cfg, root).target
    assert target.dtype == torch.bfloat16
    assert {weight.dtype for weight in target.module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cfg: setattr(cfg.device, "accelerator", "gpu"), "device.accelerator=gpu: this machine has no CUDA"),
        (lambda cfg: setattr(cfg.device, "accelerator", "gqu"), "unknown device.accelerator 'gqu'.*gpu"),
        (lambda cfg: setattr(cfg, "frozen_dtype", "bfloat16"), "frozen_dtype=bfloat16 with precision=32-true"),
        (lambda cfg: setattr(cfg, "frozen_dtype", "fp32"), "unknown frozen_dtype 'fp32'"),
    ],
)
def test_devices_and_formats_that_there_are_not(root, change, message):
    cfg = settings(root, "refused")
    change(cfg)
    with pytest.raises(TrainingError, match=message) as refused:
        run_task("", cfg)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_every_process_has_a_device_of_its_own():
    cfg = TrainConfig(device=DeviceConfig(devices=2, strategy="ddp"))
    assert device_of(cfg).type == "cpu"
    for precision, dtype in (("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)):
        cfg.precision = precision
        assert frozen_dtype(cfg) == dtype
    with PretendCuda():
        assert [device_of(cfg, {"LOCAL_RANK": str(rank)}).index for rank in (0, 1)] == [0, 1]
        assert device_of(cfg, {}).index == 0
        cfg.precision = "bf16-mixed"
        assert frozen_dtype(cfg) == torch.bfloat16
        cfg.device.strategy = "ddp_spawn"
        with pytest.raises(TrainingError, match=r"device\.strategy=ddp_spawn: .* use ddp"):
            device_of(cfg)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("distill", ""),
        ("heads", "eagle"),
        *(
            pytest.param("heads", kind, marks=pytest.mark.slow)
            for kind in ("eagle3", "dspark", "medusa", "ppd", "early_exit")
        ),
        *(pytest.param(task, "", marks=pytest.mark.slow) for task in ("lm", "selector")),
    ],
)
def test_every_task_trains_measures_and_exports(root, task, kind):
    with PretendCuda():
        report = run_task("", one_step(root, task, kind))
    assert Path(report["export"], "provenance.json").exists()
