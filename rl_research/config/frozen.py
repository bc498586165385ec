"""Dicts and lists that stay what they were: what was checked cannot be changed afterwards."""

from __future__ import annotations

from typing import Any, NoReturn


def _refuse(self: object, *_: Any, **__: Any) -> NoReturn:
    raise TypeError(f"{self} is part of a frozen configuration; change a copy, such as dict(it)")


class FrozenDict(dict[str, Any]):
    """A dict without the methods that change it; ``dict(it)`` is an ordinary one again."""

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:  # pickle and deepcopy would fill an empty one
        return type(self), (dict(self),)


class FrozenList(list[Any]):
    """A list without the methods that change it; ``list(it)`` is an ordinary one again."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = _refuse
    clear = reverse = sort = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)


def freeze(value: Any) -> Any:
    """*value* with every dict and list in it frozen, at any depth."""
    if isinstance(value, dict):
        return FrozenDict({key: freeze(member) for key, member in value.items()})
    if isinstance(value, list | tuple):
        return FrozenList(freeze(member) for member in value)
    return value


def thaw(value: Any) -> Any:
    """A copy of *value* in ordinary dicts and lists, at any depth."""
    if isinstance(value, dict):
        return {key: thaw(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(member) for member in value]
    return value
