"""Dicts and lists that stay what they were: what was checked cannot be changed afterwards."""

from typing import Any, NoReturn


def _refuse(self: object, *_: Any, **__: Any) -> NoReturn:
    raise TypeError(f"{self} is part of a frozen configuration; change a copy, such as dict(it)")


class FrozenDict(dict[str, Any]):
    """Dict without the methods that change it; ``dict(it)`` is an ordinary one again."""

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:  # pickle and deepcopy would fill an empty one
        return type(self), (dict(self),)


class FrozenList(list[Any]):
    """List without the methods that change it; ``list(it)`` is an ordinary one again."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = extend = insert = _refuse
    pop = remove = clear = reverse = sort = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)


def freeze(value: Any) -> Any:
    """Return *value* with every dict and list in it frozen, at any depth."""
    return _rebuilt(value, FrozenDict, FrozenList)


def thaw(value: Any) -> Any:
    """Return a copy of *value* in ordinary dicts and lists, at any depth."""
    return _rebuilt(value, dict, list)


def _rebuilt(value: Any, a_dict: type[dict[str, Any]], a_list: type[list[Any]]) -> Any:
    if isinstance(value, dict):
        return a_dict({key: _rebuilt(member, a_dict, a_list) for key, member in value.items()})
    if isinstance(value, list | tuple):
        return a_list(_rebuilt(member, a_dict, a_list) for member in value)
    return value
