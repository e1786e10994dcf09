"""Say what a folder of a draft head is, and whether it fits a target: ``python -m specdec.heads FOLDER``.

Only config.json and the headers of the weights are read; the last line is the command that drafts with it.
"""

from __future__ import annotations

import argparse
import sys

from specdec.errors import SpecdecError
from specdec.heads.fit import TargetFacts, problems, settings_line
from specdec.heads.folder import Folder, open_folder
from specdec.heads.spec import recognised
from specdec.heads.unsupported import unsupported


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = argparse.ArgumentParser(prog="python -m specdec.heads", description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("folder", help="a head's folder, or its name on the Hub")
    arguments.add_argument("--target", help="the folder of the model that it is to draft for, or its name on the Hub")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Print the description; returns 1 if the head does not fit or is none."""
    given = parser().parse_args(argv)
    try:
        folder = open_folder(given.folder, "FOLDER")
        spec = recognised(folder, "FOLDER")
        target = TargetFacts.of(open_folder(given.target, "--target")) if given.target else None
        found = unsupported(spec) if target is None else problems(spec, target)
        if not folder.tensors and not folder.pickles:
            found.append("it has no weights in *.safetensors")
        known = settings_line(spec, target)
    except SpecdecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in known.items():
        print(f"{name:12} {value}")
    print(f"{'weights':12} {_weights(folder)}")
    for line in found:
        print(f"{'does not fit' if target else 'not usable':12} {line}")
    if target is not None and not found:
        print(f"{'fits':12} {target.name}")
    if not found:
        pickle = " pair.allow_pickle=true" if folder.pickles else ""
        print(f"python run.py drafter={spec.kind} drafter.path={given.folder}{pickle}")
    return 1 if found else 0


def _weights(folder: Folder) -> str:
    if folder.pickles:
        return f"{folder.pickles[0].name}: a pickle, which is not read here"
    if not folder.tensors:
        return "none in *.safetensors"
    size = sum(file.stat().st_size for file in {info.file for info in folder.tensors.values()})
    return f"{len(folder.tensors)} tensors, {size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
