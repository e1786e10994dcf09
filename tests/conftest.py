"""Fixtures of small models, the decoding that they are compared with, and the command line in this process."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores: further threads would only get in the way

import pytest
import torch
from head_folders import KINDS, published
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from library_models import build

from specdec import registry
from specdec.cli import run as cli
from specdec.conformance.models import VOCAB, perturbed, small_llama
from specdec.models.causal_lm import CausalLM
from specdec.models.native.build import NotBuiltError, library_path
from specdec.run.loggers import meter
from specdec.training import shared_outputs

os.environ.setdefault("PYTHONWARNINGS", "error::FutureWarning")  # in the processes that tests start too


class Deprecations(logging.Handler):
    """`transformers` logs some of what it will remove: a warning like the others, and so an error in the tests."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            warnings.warn(record.getMessage(), FutureWarning, stacklevel=2)


logging.getLogger("transformers").addHandler(Deprecations())


@pytest.fixture(autouse=True)
def heard() -> None:
    """Loading a model silences the logger, for all later tests too."""
    logging.getLogger("transformers").setLevel(logging.WARNING)


@pytest.fixture(scope="session", autouse=True)
def own_outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Outputs that targets made for training are not taken from the user's cache, nor left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_outputs, "cache_folder", lambda: tmp_path_factory.getbasetemp() / "cache")
        yield


def no_library() -> str | None:
    """Why there is no native library on this machine; None if there is one."""
    try:
        library_path()
    except NotBuiltError as error:
        return str(error)
    return None


@pytest.fixture(
    scope="session",
    params=[
        "float64",
        pytest.param("native", marks=pytest.mark.slow),
        pytest.param("float32", marks=pytest.mark.nightly),  # native is float32, too
    ],
)
def dtype(request: pytest.FixtureRequest) -> str:
    """The models' number format; native: float32, in the native execution."""
    if request.param == "native" and (reason := no_library()):
        pytest.skip(f"no native library here: {reason}")
    return request.param


@pytest.fixture(scope="session")
def target(dtype: str) -> CausalLM:
    return _target(dtype)


@cache  # tests of all formats take turns, and every turn would begin with a new one
def _target(dtype: str) -> CausalLM:
    model = CausalLM(small_llama(0, getattr(torch, "float32" if dtype == "native" else dtype)))
    model.execute("native" if dtype == "native" else "eager")
    return model


@pytest.fixture(scope="session")
def draft(target: CausalLM) -> CausalLM:
    return _draft(target)


@cache
def _draft(target: CausalLM) -> CausalLM:
    model = CausalLM(perturbed(target.module, 0.04))
    model.execute(target.execution.name)
    return model


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Ragged prompts, one of a single token; id 0 (the padding filler) occurs in them."""
    rng = random.Random(3)
    lengths = [1, 9, 4, 17, 9, 2, 30, 9, 12, 5, 9]
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


def greedy_alone(model: CausalLM, prompt: list[int], max_new_tokens: int, stop_ids: frozenset[int]) -> list[int]:
    """transformers' own greedy generation of one prompt, without any batch."""
    output = model.module.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def command(main: Callable[[], None], *arguments: str) -> int:
    """Call the main function of run.py or train.py in this process, where torch is loaded; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py", *arguments])
        if not any(argument.startswith("experiment=") for argument in arguments):
            patch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # composes all to see if `hydra.mode` is set
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def last_document(out: str) -> dict[str, Any]:
    """The outcome of a run, or the points of a sweep: the last line, and the whole file that it names."""
    line = json.loads(out.strip().splitlines()[-1])
    if "points" in line:
        return json.loads(Path(line["document"]).read_text())
    return (
        json.loads((Path(line["path"]) / "summary.json").read_text())
        | {"path": line["path"]}
        | {"skipped": line.get("skipped", False)}
    )


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command line in this process; returns exit code, stdout and stderr."""

    def call(*arguments: str, results: Path | None = tmp_path / "results") -> tuple[int, str, str]:
        place = [f"results_dir={results}"] if results else []
        code = command(cli.main, *place, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


SECRET = "s3cr3t-value-of-a-token"
LOGGED = [
    *("pair=synthetic", "pair.hidden_size=64", "pair.num_layers=3", "data.num_prompts=4", "data.max_input_tokens=40"),
    *("data.overlong=truncate", "max_new_tokens=8", "baseline=false", "batch=2"),
]


@pytest.fixture
def logged(run, tmp_path, monkeypatch):
    """Run the command line with a secret in the environment; returns exit code and stderr."""
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(meter, "EVERY_S", 0.0)

    def call(*arguments: str) -> tuple[int, str]:
        code, _, err = run(*LOGGED, *arguments, results=tmp_path)
        return code, err

    return call


def pytest_collection_finish() -> None:
    """What has been imported by now stays: the collector, which runs call often, need not look through it again."""
    gc.collect()
    gc.freeze()


COSTLY_FIXTURES = ("docs", "report", "serving", "trained_drafters", "training", "training_resume")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With ``-n``: modules whose fixtures take long stay on one worker, all other tests go wherever there is room."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return module if Path(module).stem.removeprefix("test_") in COSTLY_FIXTURES else nodeid

    return ByFixture(config, log)


@pytest.fixture
def own_plugins():
    """Plug-ins that a test registers are gone after it, from our registry and from Hydra's."""
    repo = ConfigStore.instance().repo
    before = {group: (dict(registry._ENTRIES[group]), dict(repo[group])) for group in registry.PLUGIN_GROUPS}
    yield
    for group, (entries, options) in before.items():
        registry._ENTRIES[group] = entries
        repo[group] = options


@pytest.fixture(scope="module")
def llama() -> Any:
    """The Llama of the library's tests, whose end of text is its padding."""
    return build("Llama")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A folder of a published head by layout."""
    return {layout: published(layout, tmp_path_factory.mktemp(layout)) for layout in KINDS}
