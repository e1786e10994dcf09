"""Errors that a user can fix. Their message is one line: the setting, its value, and what would be valid."""


class SpecdecError(Exception):
    """Base of all errors that are shown without a traceback."""


class ConfigError(SpecdecError):
    """A setting is wrong, or two settings contradict each other."""


class PairError(SpecdecError):
    """A model, draft or tokenizer cannot be loaded, or they do not fit together."""


class DataError(SpecdecError):
    """Prompts cannot be read, or one of them cannot be used as configured."""


class ContractError(SpecdecError):
    """A plug-in was called, or returned something, against its contract."""


class RankError(SpecdecError):
    """Another process of the same run failed; the message is that process's."""


_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the host: torch reports it in several ways."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and any(text in str(error).lower() for text in _NO_MEMORY)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def type_and_message(error: BaseException) -> str:
    """The error's type and the first line of its message, if it has one, cut to 200 characters."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)[:200]}" if str(error).strip() else kind
