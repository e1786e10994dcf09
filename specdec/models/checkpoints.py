"""Loading checkpoints through `transformers`: Hub names, local folders and GGUF files, with errors of one line."""

from __future__ import annotations

import logging
import socket
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import SafetensorError

from specdec import assets
from specdec.assets import local_path
from specdec.config.schema import PairConfig
from specdec.errors import ConfigError, PairError, first_line
from specdec.models.architecture import check_supported
from specdec.models.gguf import (
    Header,
    announced,
    as_plain_model,
    check_complete,
    checked_header,
    dequantised,
    is_gguf,
    set_special_tokens,
)
from specdec.models.tensor_parallel import split_arguments, unwrap_ends

_LOADING = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
_PARSING = (*_LOADING, AttributeError, IndexError, TypeError)  # third-party code parses the file


@dataclass(frozen=True, slots=True)
class Source:
    """Where ``from_pretrained`` loads from."""

    name: str  # a Hub name, or a folder
    file: Path | None = None  # a GGUF file in that folder
    header: Header | None = None  # of that file

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of every ``from_pretrained``."""
        if self.file is not None:
            return {"gguf_file": self.file.name, "local_files_only": True}
        return {"local_files_only": Path(self.name).is_dir()}

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What it may raise."""
        return _LOADING if self.file is None else _PARSING


def load_model(
    role: str, name: str, pair: PairConfig, dtype: torch.dtype, device: torch.device, num_parts: int = 1
) -> Any:
    """A causal language model from a Hub name, a local folder or a GGUF file.

    With ``num_parts`` above 1, `transformers` splits it over that many processes, including this one.

    Raises:
        PairError: it cannot be loaded; the message says how to give a local folder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _quiet()
    source = _source(role, name)
    if source.file is not None and num_parts > 1:
        raise ConfigError(f"pair.{role}={name}: a GGUF file cannot be split; set runner.tensor_parallel=false")
    shared: dict[str, Any] = {"trust_remote_code": pair.trust_remote_code, **source.arguments}
    try:
        with announced(source.file) if source.file else nullcontext():
            config = AutoConfig.from_pretrained(source.name, **shared)
            check_supported(config, f"pair.{role}={name}")
            found: Any = AutoModelForCausalLM.from_pretrained(
                source.name,
                dtype=dtype,
                attn_implementation=pair.attention,
                use_safetensors=None if pair.allow_pickle else True,
                output_loading_info=True,
                **shared,
                **(dequantised() if source.file else {}),
                **split_arguments(role, name, config, num_parts),
            )
    except source.errors as error:
        raise PairError(_load_error(role, name, error)) from error
    module, loaded = found
    if missing := missing_weights(loaded):
        raise PairError(
            f"pair.{role}={name}: the checkpoint lacks {missing}, which would be random: give a complete "
            "checkpoint, or set weights=random"
        )
    if source.header is not None:
        check_complete(role, name, source.header, module)
        as_plain_model(module)
    if num_parts == 1:
        return move(module, device)
    unwrap_ends(module)
    return module


def missing_weights(loaded: dict[str, Any]) -> str | None:
    """Weights that a checkpoint lacks, which `transformers` only warns about and fills with random numbers.

    Args:
        loaded: the loading info of ``from_pretrained`` with ``output_loading_info``.
    """
    missing: list[str] = sorted(loaded["missing_keys"])
    if not missing:
        return None
    return missing[0] + (f" and {len(missing) - 1} more weights" if len(missing) > 1 else "")


def load_tokenizer(name: str, pair: PairConfig) -> Any:
    """The tokenizer of a Hub name, a local folder or a GGUF file."""
    from transformers import AutoTokenizer

    _quiet()
    source = _source("tokenizer", name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.name, trust_remote_code=pair.trust_remote_code, **source.arguments
        )
    except source.errors as error:
        raise PairError(_load_error("tokenizer", name, error)) from error
    if source.header is not None:
        set_special_tokens(tokenizer, source.header)
    return tokenizer


def _is_local(name: str) -> bool:
    return local_path(name).exists()


def _source(role: str, name: str) -> Source:
    """A file or folder that exists, or a Hub name; any other path is an error."""
    path = local_path(name)
    if is_gguf(name):
        return Source(str(path.parent), path, checked_header(role, name, path))
    if path.is_dir():
        return Source(str(path))
    if name.startswith(assets.FETCHED):
        model = name.removeprefix(assets.FETCHED)
        raise PairError(f"pair.{role}={name}: not fetched yet: run `python -m specdec.models.fetch {model}` first")
    if name.startswith(("/", ".", "~", assets.PREFIX)) or name.count("/") != 1:
        raise ConfigError(f"pair.{role}={name}: no such folder, and not a Hub name (ORGANISATION/MODEL)")
    if _hub_is_unknown() and not _is_cached(name):
        raise PairError(_load_error(role, name, OSError("no connection, and not in the local cache")))
    return Source(name)


def _quiet() -> None:
    """Silence the Hub client, which logs every retry, and transformers: errors are reported in one line."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for name in ("huggingface_hub", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _hub_is_unknown() -> bool:
    """Whether the Hub's host cannot be resolved, so that retrying for half a minute would be useless."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if getproxies() or host is None:
        return False
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return True
    return False


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "tokenizer_config.json"))


def move(module: Any, device: torch.device) -> Any:
    """The module on a device (transformers annotates ``to`` in a way that no caller can satisfy)."""
    return module.to(device)


def _load_error(role: str, name: str, error: Exception) -> str:
    reason = first_line(error)
    if _is_local(name):
        what = "file" if is_gguf(name) else "folder"
        return f"pair.{role}={name}: the {what} does not hold a checkpoint that can be loaded: {reason}"
    remedy = f"download it and set pair.{role}=FOLDER (Hub format)"
    if role != "tokenizer":
        remedy += ", or set weights=random for the same architecture without a download"
    return f"cannot load the {role} model {name!r} from the Hub: {remedy} [{reason}]"
