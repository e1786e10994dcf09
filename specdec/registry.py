"""One decorator that names a plug-in: it feeds the registry, Hydra's config groups and ``--help``.

It has two forms with the same effect:

- on a config dataclass, with a lazy ``target="module:Class"``, so that nothing heavy is imported before a job starts.
  The built-in plug-ins are declared in this way, in `specdec.config.running` and `specdec.config.methods`;
- on the implementing class itself: its keyword-only ``__init__`` parameters become the settings, and the text of an
  ``Annotated[int, "text"]`` the setting's help text. This is the short form for a plug-in that is one file of another
  package.

A package announces its plug-ins by an entry point in the group ``specdec.plugins`` that names a module; importing
that module registers them.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, TypeVar, get_args, get_origin

from hydra.core.config_store import ConfigStore

from specdec.errors import ConfigError

T = TypeVar("T")

PLUGIN_GROUPS = (
    "scheduler",
    "batching",
    "alignment",
    "drafter",
    "tree",
    "selector",
    "verifier",
    "draft_length",
    "budget",
    "arrivals",
    "logger",
)
ENTRY_POINT_GROUP = "specdec.plugins"
NOT_PARAMS = ("name", "label")  # fields of a plug-in's config that are not passed to its class


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered plug-in: its config dataclass, and the class or the place to import it from.

    The properties are what the checks of a config need to know before the class is imported.
    """

    group: str
    name: str
    target: str | type
    config: type
    doc: str
    known_incorrect: bool = False  # any group: has its published defects; a run needs allow_incorrect=true
    # drafter
    drafts: bool = True  # False: proposes nothing, so the run is plain decoding
    by_text: bool = False  # draft and target exchange text, so their vocabularies may differ
    replays: bool = False  # proposes the reference outputs, and nothing past their end
    grows: bool = False  # steps by a model, so that it can draft any `tree`
    trees: str = ""  # where it has trees of its own: their settings, for error messages
    learner: str = ""  # "module:Class" of the learner that updates it while it serves; "": it cannot learn
    # tree
    shaped: bool = False  # its rows may have different shapes, so that a selector can choose them
    # drafter, tree
    siblings: str = "chain"  # the kind of siblings (`specdec.core.siblings`) of sampled rows
    # verifier
    lossy: bool = False  # samples from another distribution than the target's; a run needs allow_lossy=true
    samples: bool = True  # False: supports greedy decoding only
    follows_plain: bool = False  # sampled tokens equal those of plain sampling with the same random numbers
    averages_losers: bool = False  # its rule integrates over drafted paths that were not chosen
    judges: tuple[str, ...] = ("chain",)  # kinds of siblings (`specdec.core.siblings`) that it can judge
    # draft_length, budget
    per_row: bool = False  # depends on the row alone, so it chooses the same length at batch 1
    reads_clock: bool = True  # False: measures no time, so all processes of a run choose the same length
    # arrivals
    timed: bool = True  # False: all requests arrive at the start
    # scheduler
    windowed: bool = False  # keeps more rows in flight than it runs at once: the batching policy's window

    @property
    def defaults(self) -> dict[str, Any]:
        """Declared defaults of its settings, without those that refer to other settings (``${gamma}``)."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self.config):
            if field.default_factory is not dataclasses.MISSING:
                values[field.name] = field.default_factory()
            elif field.default is not dataclasses.MISSING and not str(field.default).startswith(("${", "???")):
                values[field.name] = field.default
        return {name: value for name, value in values.items() if name not in NOT_PARAMS}

    def load(self) -> type:
        """Import and return the implementing class."""
        if isinstance(self.target, type):
            return self.target
        module, _, attribute = self.target.partition(":")
        loaded = getattr(importlib.import_module(module), attribute)
        assert isinstance(loaded, type)
        return loaded


_ENTRIES: dict[str, dict[str, Entry]] = {group: {} for group in PLUGIN_GROUPS}


def register(
    group: str,
    name: str,
    target: str | None = None,
    *,
    preset: bool = False,
    **properties: Any,
) -> Callable[[type[T]], type[T]]:
    """Register a plug-in under ``group=name``; returns the decorated class unchanged.

    ``properties`` are those of `Entry`; runs refuse ``known_incorrect`` and ``lossy`` plug-ins unless these are
    allowed. With ``preset`` the name belongs to a preset in ``conf/``, which takes the settings from ``schema/name``
    and may also choose plug-ins of other groups.

    Raises:
        ConfigError: the group is unknown, or the name is taken.
    """
    if group not in _ENTRIES:
        raise ConfigError(unknown("plug-in group", group, _ENTRIES))

    def decorate(cls: type[T]) -> type[T]:
        implementation = target or cls
        if name in _ENTRIES[group]:
            raise ConfigError(f"{group}={name} is registered twice: rename the plug-in in {cls.__module__}")
        config = cls if dataclasses.is_dataclass(cls) else _config_from_signature(cls)
        own = {"name": name}
        if group == "scheduler" and all(field.name != "label" for field in dataclasses.fields(config)):
            own["label"] = "${.name}"  # its name in tables
        node = dataclasses.make_dataclass(
            cls.__name__,
            [(key, str, dataclasses.field(default=value)) for key, value in own.items()],
            bases=(config,),
            namespace={"__reduce__": lambda self: (_config, (group, name, vars(self)))},  # its class is in no module
        )
        doc = (inspect.getdoc(cls) or "").partition("\n")[0]
        for key in ("judges", "siblings", "shaped"):  # the short form: a class says it once
            if said := getattr(cls, key, None):
                properties.setdefault(key, said)
        _ENTRIES[group][name] = Entry(group, name, implementation, node, doc, **properties)
        where = f"{group}/schema" if preset else group
        ConfigStore.instance().store(group=where, name=name, node=node, provider=cls.__module__)
        return cls

    return decorate


def create(group: str, name: str, /, *dependencies: Any, **params: Any) -> Any:
    """Build the plug-in ``group=name``: dependencies by position, its own settings by keyword.

    A setting that is not given takes its declared default.
    """
    entry = lookup(group, name)
    return entry.load()(*dependencies, **{**entry.defaults, **params})


def lookup(group: str, name: str) -> Entry:
    """Return a plug-in's entry; an unknown name raises with the valid ones and a suggestion."""
    load_entry_points()
    entries = _ENTRIES[group]
    if name not in entries:
        raise ConfigError(unknown(group, name, entries))
    return entries[name]


def _config(group: str, name: str, settings: dict[str, Any]) -> Any:
    """The config of ``group=name`` with all its settings; for copies, and for the processes that a run starts."""
    return lookup(group, name).config(**settings)


def declared_so_far(group: str) -> list[Entry]:
    """The entries of a group, without those of installed packages that were not loaded yet."""
    return list(_ENTRIES[group].values())


def names(group: str) -> list[str]:
    """Names registered in a group, sorted."""
    return sorted(_ENTRIES[group])


def unknown(what: str, name: str, options: Iterable[str]) -> str:
    """One line for a name that does not exist: the valid names, and the most similar one."""
    valid = sorted(options)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}: choose from {', '.join(valid)}{hint}"


@cache
def load_entry_points() -> None:
    """Import the modules that installed packages announce under ``specdec.plugins``, once.

    A plug-in that cannot be imported is reported on stderr and skipped; the others are still loaded.
    """
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry_point.load()
        except Exception as error:  # third-party code may raise anything
            print(f"specdec: plug-in {entry_point.value} is skipped: {error!r}", file=sys.stderr)


def _config_from_signature(cls: type) -> type:
    """A dataclass with one field for each keyword-only parameter of ``cls.__init__``, which may be inherited."""
    initializer: Any = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    scope = getattr(initializer, "__globals__", None)
    if scope is None:  # object.__init__
        return dataclasses.make_dataclass(cls.__name__, [])
    fields = []
    for parameter in inspect.signature(initializer).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{cls.__name__}.{parameter.name} needs a default, because it becomes a setting")
        annotation = parameter.annotation
        if isinstance(annotation, str):
            annotation = eval(annotation, scope)
        help = ""
        if get_origin(annotation) is Annotated:
            annotation, help = get_args(annotation)[:2]
        field = dataclasses.field(default=parameter.default, metadata={"help": help})
        fields.append((parameter.name, annotation, field))
    return dataclasses.make_dataclass(cls.__name__, fields)
