"""What a setting names in a list, such as ``[{my_wrapper: {scale: 2}}, my_other]``: checked, then made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from rl_research.config import signatures
from rl_research.config.frozen import FrozenDict, freeze, thaw
from rl_research.config.messages import mistake
from rl_research.config.registry import Kind


def _listed(value: object) -> list[Any]:
    found = [value] if isinstance(value, str | Mapping) else value
    if not isinstance(found, list | tuple):
        raise ValueError("should be a list")
    return [_plain(part) for part in found]


def _plain(part: object) -> Any:
    """Return *part* as it is kept: a name alone, or with its arguments."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and len(part) == 1:
        ((name, arguments),) = part.items()
        if isinstance(name, str) and isinstance(arguments, Mapping | None):
            return FrozenDict({name: freeze(dict(arguments))}) if arguments else name
    raise ValueError("should be a list of names, each alone or as {name: {argument: value}}")


Parts = Annotated[tuple[Any, ...], BeforeValidator(_listed)]


def name_and_arguments(part: object) -> tuple[str, dict[str, Any]]:
    """Return the name in *part* and its arguments."""
    plain = _plain(part)
    if isinstance(plain, str):
        return plain, {}
    ((name, arguments),) = plain.items()
    return name, thaw(arguments)


def check(where: str, kind: Kind, part: object, given: int = 0) -> None:
    """Raise `ConfigError` unless *part*, in the setting *where*, names one of *kind* and arguments that it takes.

    The first *given* arguments come from us.
    """
    name, arguments = name_and_arguments(part)
    function = kind.find(where, name)
    parameters = list(signatures.parameters(function).values())[given:]
    signatures.check_arguments(f"{where}.{name}", parameters, arguments, function.__name__)


def made(where: str, kind: Kind, part: object, *given: Any) -> Any:
    """Return what *part* names, made from *given* and its arguments; `ConfigError` if it refuses them."""
    name, arguments = name_and_arguments(part)
    function = kind.find(where, name)
    try:
        return function(*given, **arguments)
    except (AssertionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise mistake(f"{where}.{name}", arguments, f"{function.__name__} refuses: {reason}") from error
