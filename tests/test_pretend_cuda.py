"""The pretended GPU itself: it refuses and counts what a real one would, and nothing is left of it afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from pretend_cuda import CPU, GPU, NAME, MixedDevicesError, PretendCuda, on_gpu
from torch import nn
from transformers import AutoModelForCausalLM

from specdec.assets import local_path


def test_tensors_are_where_they_were_made_or_moved():
    with PretendCuda():
        there, here = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
        assert (there.device, here.device, there.is_cuda) == (GPU, CPU, True)
        for tensor in (
            there[0],
            there.T,
            there + 1,
            there.float().topk(2).values,
            torch.zeros_like(there),
            there.new_ones(2),
        ):
            assert on_gpu(tensor)
        assert here.to("cuda").device == GPU
        assert here.device == CPU
        assert there.cpu().device == there.to(torch.float64).cpu().device == CPU
        assert torch.zeros_like(there, device="cpu").device == CPU
        with torch.device("cuda"):
            assert torch.arange(3).device == GPU
        assert there.to(here).device == CPU
        assert here.copy_(there) is here
        assert here.device == CPU
    assert torch.ones(1).device == CPU
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != NAME


def test_meta_tensors_stay_without_values():
    """`transformers` builds a model on "meta" and fills it afterwards, its buffers too."""
    with PretendCuda():
        with torch.device("meta"):
            assert nn.Linear(2, 2).weight.device.type == "meta"
        assert torch.ones(2, device="meta").device.type == torch.ones(2, device="cuda").to("meta").device.type == "meta"
        assert torch.empty_like(torch.ones(2, device="meta"), device="cuda").device == GPU
        # Filled with NaN, memory that nobody writes shows.
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            module = AutoModelForCausalLM.from_pretrained(local_path("asset:tiny/draft")).to("cuda")
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(part.isfinite().all() for part in [*module.parameters(), *module.buffers()])


@pytest.mark.parametrize(
    "call",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: torch.nn.functional.linear(there, here),
        lambda there, here: here[there.long()],
        lambda there, here: there.scatter_(0, here.long(), 1.0),
        lambda there, here: there.__setitem__(0, here[0]),
        lambda there, here: there.numpy(),
        lambda there, here: nn.Linear(2, 2)(there),
    ],
    ids=range(8),
)
def test_mixed_devices_are_refused(call):
    with PretendCuda(), pytest.raises(MixedDevicesError):
        call(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("call", "num_waits"),
    [
        (lambda there, here: there + 1 + torch.tensor(2.0), 0),
        (lambda there, here: there.masked_fill(there > 0, 0.0).argmax(), 0),
        (lambda there, here: there.__setitem__(there > 0, 0.0), 0),
        (lambda there, here: here.pin_memory().to("cuda", non_blocking=True), 0),
        (lambda there, here: here.tolist(), 0),
        (lambda there, here: torch.arange(3, device="cuda"), 0),
        (lambda there, here: there.tolist(), 1),
        (lambda there, here: bool((there > 0).any()), 1),
        (lambda there, here: [0, 1, 2][there.long()[0, 0]], 1),
        (lambda there, here: there[there > 0], 1),
        (lambda there, here: there[[0, 1]], 1),
        (lambda there, here: there[here.long()], 1),
        (lambda there, here: there.nonzero(), 1),
        (lambda there, here: torch.tensor([1, 2], device="cuda"), 1),
        (lambda there, here: here.to("cuda"), 1),
        (lambda there, here: there.to("cpu", torch.float64), 1),
        (lambda there, here: here.copy_(there), 1),
    ],
    ids=range(17),
)
def test_waits_are_counted(call, num_waits):
    with PretendCuda() as gpu:
        there, here = torch.ones(2, 2, device="cuda"), torch.ones(2, 2)
        call(there, here)
        assert gpu.num_waits == num_waits, gpu.waits


def test_modules_are_moved_copied_and_trained():
    """One step of training, the same as on the CPU."""

    def step(place):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7), nn.LayerNorm(7)).to(
            device=place, dtype=torch.float64
        )
        module = copy.deepcopy(module)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        ids = torch.arange(6, device=place)
        loss = nn.functional.cross_entropy(module(ids), (ids + 1) % 7)
        loss.backward()
        assert all(parameter.grad.device == parameter.device for parameter in module.parameters())
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return module, [parameter.detach().cpu() for parameter in module.parameters()]

    _, expected = step(CPU)
    with PretendCuda():
        module, found = step(GPU)
        assert {parameter.device for parameter in module.parameters()} == {GPU}
        assert all(value.device == GPU for value in module.state_dict().values())
    assert all(map(torch.equal, found, expected))


def test_events_and_memory_answer():
    with PretendCuda() as gpu:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        end.record()
        torch.cuda.synchronize()
        assert start.elapsed_time(end) >= 0
        assert torch.cuda.mem_get_info(GPU)[0] > torch.cuda.max_memory_allocated(GPU) > 0
        assert gpu.num_synchronized == 1
