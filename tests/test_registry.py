"""Plug-ins: one decorator, two forms, and packages that bring their own."""

from __future__ import annotations

import copy
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from conftest import last_document
from omegaconf import OmegaConf, ValidationError

import specdec.config  # noqa: F401
from specdec import registry
from specdec.core.settings import help_texts
from specdec.errors import ConfigError, ContractError
from specdec.verifiers.base import Verifier

ROOT = Path(__file__).parent.parent


pytestmark = pytest.mark.usefixtures("own_plugins")


def test_the_decorator_returns_the_class_and_makes_its_keywords_settings():
    @registry.register("drafter", "test_mine")
    class Mine:
        """A drafter of mine."""

        def __init__(self, context, *, depth: int = 3, share: float | None = None) -> None:
            self.all = (context, depth, share)

    assert isinstance(Mine, type)
    entry = registry.lookup("drafter", "test_mine")
    assert entry.doc == "A drafter of mine."
    assert entry.config().name == "test_mine"
    assert entry.config().depth == 3
    assert registry.create("drafter", "test_mine", "context", depth=5).all == ("context", 5, None)


def test_an_annotated_keyword_has_a_help_text():
    @registry.register("drafter", "test_annotated")
    class Explained:
        def __init__(self, context, *, depth: Annotated[int | None, "levels"] = 3, width: int = 1) -> None: ...

    config = registry.lookup("drafter", "test_annotated").config
    assert help_texts(config, "drafter.") == {"drafter.depth": "levels"}
    assert OmegaConf.merge(OmegaConf.structured(config), {"depth": None}).depth is None
    with pytest.raises(ValidationError):
        OmegaConf.merge(OmegaConf.structured(config), {"depth": "deep"})


def test_configs_of_plugins_travel_to_other_processes():
    """A run starts its processes with its typed config: of built-in plug-ins, and of those made from keywords."""

    @registry.register("drafter", "test_mine")
    class Mine:
        """A drafter of mine."""

        def __init__(self, context, *, depth: int = 3) -> None:
            self.depth = depth

    for group in registry.PLUGIN_GROUPS:
        for name in registry.names(group):
            config = registry.lookup(group, name).config()
            for copied in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
                assert copied == config
                assert copied is not config
    changed = registry.lookup("drafter", "test_mine").config(depth=7)
    assert pickle.loads(pickle.dumps(changed)).depth == 7


def test_a_verifier_that_decides_nothing_is_refused_where_it_is_defined():
    with pytest.raises(ContractError, match="Misspelt defines neither verify nor verify_sampled"):

        class Misspelt(Verifier):
            def verfy(self, draft, logits_BTV):
                raise NotImplementedError


class WithoutDefaults:
    def __init__(self, context, *, depth, words, gamma) -> None:
        self.all = (context, depth, words, gamma)


def test_a_setting_that_is_not_given_has_its_declared_default():
    @dataclass
    class Settings:
        """Settings are declared here, and the class has none."""

        depth: int = 3
        label: str = "not a parameter of the class"
        gamma: int = "${gamma}"  # type: ignore[assignment]
        words: list[str] = field(default_factory=list)

    registry.register("drafter", "test_declared", target=f"{__name__}:WithoutDefaults")(Settings)
    assert registry.create("drafter", "test_declared", "context", gamma=4).all == ("context", 3, [], 4)
    with pytest.raises(TypeError, match="gamma"):
        registry.create("drafter", "test_declared", "context")


def test_properties_are_known_before_the_class_is_imported():
    @registry.register("drafter", "test_plain", target="no.such.module:Thing", drafts=False)
    @dataclass
    class Plain:
        """Not there."""

    entry = registry.lookup("drafter", "test_plain")
    assert (entry.drafts, entry.replays) == (False, False)
    with pytest.raises(TypeError, match="draft"):
        registry.register("drafter", "test_misspelt", draft=False)(dataclass(type("Misspelt", (), {})))


def test_a_verifier_that_is_registered_itself_says_what_it_judges_once():
    registry.register("verifier", "test_wide")(type("Wide", (), {"judges": ("iid", "beam")}))
    assert registry.lookup("verifier", "test_wide").judges == ("iid", "beam")
    registry.register("verifier", "test_silent")(type("Silent", (), {}))
    assert registry.lookup("verifier", "test_silent").judges == ("chain",)


def test_a_lazy_target_is_imported_only_when_it_is_built():
    @registry.register("drafter", "test_lazy", target="no.such.module:Thing")
    @dataclass
    class Lazy:
        """Not there."""

        depth: int = 1

    assert registry.lookup("drafter", "test_lazy").config().depth == 1
    with pytest.raises(ModuleNotFoundError):
        registry.create("drafter", "test_lazy")


def test_duplicates_and_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="alignment=eqspec is registered twice"):
        registry.register("alignment", "eqspec")(dataclass(type("Twice", (), {})))
    with pytest.raises(ConfigError, match=r"unknown alignment 'eqspc': choose from .*did you mean 'eqspec'"):
        registry.lookup("alignment", "eqspc")
    with pytest.raises(ConfigError, match=r"unknown plug-in group 'aligment'.*did you mean 'alignment'"):
        registry.register("aligment", "x")
    with pytest.raises(ConfigError, match="needs a default"):

        @registry.register("drafter", "test_bad")
        class Bad:
            def __init__(self, *, depth: int) -> None: ...


def test_declared_properties_agree_with_the_classes():
    for name in (name for name in registry.names("verifier") if not name.startswith("test_")):
        entry, verifier = registry.lookup("verifier", name), registry.create("verifier", name)
        assert (entry.samples, set(entry.judges)) == (verifier.samples, set(verifier.judges)), name
    for name in (name for name in registry.names("drafter") if not name.startswith("test_")):
        entry = registry.lookup("drafter", name)
        assert entry.drafts == (entry.load().max_length != 0), name


def test_every_built_in_target_can_be_imported():
    for group in registry.PLUGIN_GROUPS:
        for name in registry.names(group):
            if not name.startswith("test_"):
                assert isinstance(registry.lookup(group, name).load(), type)


EXAMPLES = {"alignment": "recompute", "drafter": "bigram", "scheduler": "round_robin"}


@pytest.fixture
def installed(tmp_path):
    """The example plug-ins as installed packages: their files, and the metadata that an installer writes."""
    for group, name in EXAMPLES.items():
        shutil.copy(ROOT / "experiments" / f"plugin_{group}" / f"specdec_{name}.py", tmp_path)
        info = tmp_path / f"specdec_{name}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: specdec-{name}\nVersion: 0.1.0\n")
        (info / "entry_points.txt").write_text(f"[specdec.plugins]\n{name} = specdec_{name}\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments], capture_output=True, text=True, env=environment, cwd=ROOT
    )


def sweep(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The points of a sweep that nothing went wrong in."""
    result = run(folder, "-m", *arguments, f"results_dir={folder}/results")
    assert result.returncode == 0, result.stderr
    return last_document(result.stdout)["points"]


def listed(page: str, group: str) -> list[str]:
    """The plug-ins of a group that a help page lists."""
    block = re.search(rf"^{group}\n((?:  .*\n)+)", page, re.MULTILINE)
    assert block is not None
    return [line.split()[0] for line in block[1].splitlines()]


@pytest.mark.nightly  # CI installs them, reads the help and proves each by the kit
def test_installed_plug_ins_appear_in_help_and_one_runs_in_a_sweep(installed):
    page = run(installed, "--help", "drafter=bigram").stdout
    for group, name in EXAMPLES.items():
        assert name in listed(page, group)
    setting = " ".join(page.partition("max_tokens: ")[2][:300].replace("#", " ").split())
    assert setting.startswith("8 drafted tokens per row and round, at most"), setting
    bigram, model = sweep(
        installed,
        "scheduler=exspec",
        "drafter=bigram,model",
        "data.num_prompts=4",
        "max_new_tokens=24",
        "baseline=false",
    )
    assert (bigram["drafter"], model["drafter"]) == ("bigram", "model")
    assert bigram["num_exact"] == model["num_exact"] == 4
    assert bigram["num_drafted"] > 0


def test_a_broken_plug_in_is_skipped_and_named(installed):
    (installed / "specdec_bigram.py").write_text("raise RuntimeError('oh no')\n")
    result = run(installed, "--help")
    assert result.returncode == 0
    assert "plug-in specdec_bigram is skipped: RuntimeError('oh no')" in result.stderr
    assert "model" in listed(result.stdout, "drafter")
    assert "bigram" not in listed(result.stdout, "drafter")


PLUGIN = """
from specdec import register
from specdec.schedulers.base import Scheduler
from specdec.schedulers.order import BatchingPolicy


@register("scheduler", "shortest")
class Shortest(Scheduler):
    def __init__(self, batch, window, *, patience: int = 1) -> None:
        self.batch = batch

    def select(self, pool):
        pool.activate(self.batch - len(pool.active))
        return list(pool.active)


@register("batching", "longest")
class Longest(BatchingPolicy):
    def order(self, rows):
        return sorted(rows, key=lambda row: -len(row.prompt_ids))


@register("batching", "stubborn")
class Stubborn(BatchingPolicy):
    def __init__(self, *, depth: int = 2) -> None:
        super().__init__()

    def order(self, rows):
        return list(rows)
"""


@pytest.mark.nightly
def test_schedulers_and_policies_of_one_class_run_in_a_sweep(installed):
    """They bring neither the label that tables call them by, nor a window of their own."""
    (installed / "specdec_bigram.py").write_text(PLUGIN)
    longest, stubborn = sweep(
        installed,
        "scheduler=shortest",
        "batching=longest,stubborn",
        "data.num_prompts=3",
        "max_new_tokens=6",
        "baseline=false",
    )
    assert longest["scheduler"] == stubborn["scheduler"] == "shortest"
    assert (longest["window"], stubborn["window"]) == (48, 48)
    assert longest["num_exact"] == stubborn["num_exact"] == 3
