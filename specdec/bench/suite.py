"""What is measured, as data: suites, studies, methods, pairs and claims, read from YAML. Imports no torch.

A folder holds `pairs.yaml`, `methods.yaml`, `peers.yaml`, `published.yaml` and `suite/NAME.yaml`; experiments/speed is
one. A suite is a list of studies: every method of a study runs on every pair, context and batch size of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from specdec.errors import ConfigError
from specdec.registry import unknown

FOLDER = Path(__file__).resolve().parent.parent.parent / "experiments" / "speed"
_ALONE = ("suite", "speed/suite", "folder")

DONE, FAILED, ABSENT, REFUSED, NO_TIME = "done", "failed", "not installed", "refused", "no time left"
"""What becomes of a check or a measurement."""


@dataclass
class Study:
    """Methods that are compared with each other, in turn, cell by cell."""

    title: str = MISSING
    pairs: list[str] = MISSING
    methods: list[str] = MISSING
    batches: list[int] = MISSING
    contexts: list[int | None] = field(default_factory=lambda: [None])  # approximate prompt tokens; null: unchanged
    max_new_tokens: int = 32
    spread: float = 0.0  # of the rows' budgets: the least is (1 - spread) / (1 + spread) of the largest
    min_prompts: int = 8  # prompts of a cell: at least these,
    prompts_per_row: int = 2  # and this many for each row of the batch
    repeats: int | None = None  # null: the suite's
    bound: bool = False  # replay the forwards of every measurement, for loop_efficiency
    data: str | None = None  # null: the suite's
    baseline: str | None = None  # the method that ratios are quoted against
    published: list[str] = field(default_factory=list)  # figures of published.yaml, shown below the measured ones
    overrides: list[str] = field(default_factory=list)  # for every method that runs here

    @property
    def longest_output(self) -> int:
        """Tokens of the longest output."""
        return round(self.max_new_tokens * (1 + self.spread))


@dataclass
class Claim:
    """A figure that the suite must show: a metric of a method, or its ratio to another one's."""

    text: str = MISSING
    study: str = MISSING
    method: str = MISSING
    metric: str = "tokens_per_s"
    over: str | None = None  # the ratio to this method in the same cell; or published:NAME
    yardstick: str | None = None  # METHOD=NAME: measured here and published there, which scales the published figure
    pairs: list[str] | None = None  # null: every one of the study
    batches: list[int] | None = None
    contexts: list[int | None] | None = None
    at_least: float | None = None
    at_most: float | None = None


@dataclass
class Method:
    """One line of a table: overrides of a run config, or a peer in a process of its own."""

    overrides: list[str] = field(default_factory=list)
    peer: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # for the peer
    batches: list[int] | None = None  # batch sizes it can do; null: all
    warmup: str = "short"  # short: a few tokens of a full batch; full: the whole measurement once, not counted
    note: str = ""


@dataclass
class Peer:
    """How a peer is started."""

    script: str = MISSING  # relative to the folder
    environment: str = MISSING  # folder under `peers`, made by install.py; "current": this Python
    needs_gpu: bool = False
    note: str = ""


@dataclass
class Kit:
    """Plug-ins that go through the conformance kit."""

    plugins: list[str] = field(default_factory=list)  # GROUP=NAME; none: all but the known incorrect ones
    accelerator: str = "auto"
    scale: float = 0.1


@dataclass
class Equivalence:
    """Prompts whose outputs must be those of the target alone, or differ from them by rounding alone."""

    pair: str = MISSING
    methods: list[str] = MISSING
    exact: bool = True  # False: differences that rounding explains are allowed
    batch: int = 16
    num_prompts: int = 480
    max_new_tokens: int = 32
    overrides: list[str] = field(default_factory=list)


@dataclass
class Suite:
    """Everything that one run of the benchmark measures."""

    name: str = ""
    title: str = MISSING
    threads: int = 1  # of every method and peer, pinned to as many cores
    repeats: int = 3
    data: str = "heldout"  # heldout, or a JSONL file in Spec-Bench's schema
    out: str | None = None  # measurements, tables and plots; null: outputs/bench/NAME
    cache: str = "outputs/bench/cache"  # references, and pairs exported for peers
    peers: str = "outputs/bench/peers"  # where install.py made their environments
    peer_timeout_s: float = 900.0
    minutes: float | None = None  # nothing new is begun after so many; turns then go round all cells. null: no limit
    progress: bool = True
    force: bool = False  # discard measurements and draft tables, as after a change of the code
    only: list[str] | None = None  # studies to run; null: all
    without: list[str] = field(default_factory=list)  # methods to leave out
    kit: Kit | None = None
    equivalence: dict[str, Equivalence] = field(default_factory=dict)
    studies: dict[str, Study] = MISSING
    claims: list[Claim] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Library:
    """What suites name: pairs as overrides, methods, peers, and figures published elsewhere."""

    folder: Path
    pairs: dict[str, list[str]]
    methods: dict[str, Method]
    peers: dict[str, Peer]
    published: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_suite(words: list[str]) -> tuple[Suite, Library]:
    """Read ``suite=NAME`` and further ``key=value`` settings of it.

    Raises:
        ConfigError: naming the word, and what would be right.
    """
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word}: write KEY=VALUE, as in suite=quick or repeats=5")
    settings = [word for word in words if word.partition("=")[0] not in _ALONE]
    alone = dict(word.removeprefix("speed/").split("=", 1) for word in words if word not in settings)
    folder = Path(alone.get("folder", FOLDER))
    library = _library(folder)
    name = alone.get("suite", "quick")
    path = Path(name) if name.endswith(".yaml") else folder / "suite" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(unknown("suite", name, [file.stem for file in (folder / "suite").glob("*.yaml")]))
    suite = _typed(Suite, _load(path), path.name, settings)
    suite.name = suite.name or path.stem
    suite.out = suite.out or f"outputs/bench/{suite.name}"
    _check(suite, library)
    return suite, library


def _library(folder: Path) -> Library:
    if not (folder / "methods.yaml").is_file():
        raise ConfigError(
            f"folder={folder}: no methods.yaml there; give folder=PATH of experiments/speed in a checkout"
        )
    files = {name: folder / f"{name}.yaml" for name in ("pairs", "methods", "peers", "published")}
    tables = {name: _load(path) for name, path in files.items() if path.is_file() or name != "published"}
    library: Library = _typed(Library, {"folder": folder, **tables}, str(folder))
    return library


def _typed(cls: type[Any], source: Any, where: str, settings: Iterable[str] = ()) -> Any:
    """A dataclass filled from YAML and the command line; unknown keys are an error of one line."""
    try:
        return OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(cls), source, OmegaConf.from_dotlist(list(settings)))
        )
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}: {key}{str(error).partition(chr(10))[0]}") from error


def _load(path: Path) -> Any:
    """A YAML file, or an error of one line that says where it is broken."""
    try:
        return OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


def _check(suite: Suite, library: Library) -> None:
    """Refuse names that do not exist before anything is measured."""
    _known("study", suite.only or [], suite.studies)
    if suite.only is not None:
        suite.studies = {name: study for name, study in suite.studies.items() if name in suite.only}
        suite.claims = [claim for claim in suite.claims if claim.study in suite.only]
    if suite.threads < 1 or suite.repeats < 1:
        raise ConfigError(f"threads={suite.threads}, repeats={suite.repeats}: both must be at least 1")
    for study in suite.studies.values():
        _known("pair of pairs.yaml", study.pairs, library.pairs)
        _known("method of methods.yaml", study.methods, library.methods)
        _known("figures of published.yaml", study.published, library.published)
        study.methods = [method for method in study.methods if method not in suite.without]
        if not 0 <= study.spread < 1:
            raise ConfigError(f"spread={study.spread}: it must be from 0 to below 1")
        if study.spread and any(library.methods[method].peer for method in study.methods):
            raise ConfigError(f"spread={study.spread}: other engines take one max_new_tokens for all; set spread=0")
    for group in suite.equivalence.values():
        _known("pair of pairs.yaml", [group.pair], library.pairs)
        _known("method of methods.yaml", group.methods, library.methods)
    for claim in suite.claims:
        _known(f"study of the claim {claim.text!r}", [claim.study], suite.studies)
    for name, method in library.methods.items():
        _known(f"peer of {name} in methods.yaml", [method.peer] if method.peer else [], library.peers)


def _known(kind: str, names: Iterable[str], options: Iterable[str]) -> None:
    for name in names:
        if name not in options:
            raise ConfigError(unknown(kind, name, options))
