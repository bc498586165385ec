"""Answers to GraphQL queries out of plain dictionaries: just enough for W&B's client.

A document becomes fields, and a field takes what the dictionary above it holds under its name. A callable
there is called with the field's arguments. What no dictionary holds is null, as in a server that knows
the field; an operation that nobody knows is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\.\.\.|-?\d+(?:\.\d+)?|\$?[A-Za-z_][A-Za-z_0-9]*|[!(){}\[\]:=@|&]')
_COMMENT = re.compile(r"#[^\n]*")
_CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass
class Field:
    """A field or, without a name, a fragment: ``on`` a type or a ``spread`` by name."""

    name: str = ""
    alias: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    condition: tuple[str, Any] | None = None
    spread: str = ""
    selection: list[Field] = field(default_factory=list)


@dataclass(frozen=True)
class Variable:
    """``$name``, whose value comes with the request."""

    name: str


class Unknown(Exception):
    """Raised for an operation that the server does not have."""


class Document:
    """A parsed query or mutation with its fragments."""

    def __init__(self, text: str):
        self._tokens = _TOKEN.findall(_COMMENT.sub("", text))
        self._at = 0
        self.operation = ""
        self.defaults: dict[str, Any] = {}
        self.fields: list[Field] = []
        self.fragments: dict[str, list[Field]] = {}
        while self._at < len(self._tokens):
            self._definition()

    def answer(self, root: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
        """The data that the document asks of *root*."""
        known = {**self.defaults, **variables}
        for wanted in self.fields:
            if wanted.name and wanted.name not in root:
                raise Unknown(f"Cannot query field {wanted.name!r} in {self.operation}")
        return dict(self._pairs(self.fields, root, known))

    # ------------------------------------------------------------ answering

    def _pairs(
        self, selection: list[Field], source: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        for wanted in selection:
            if not _included(wanted, variables):
                continue
            if not wanted.name:
                inner = self.fragments[wanted.spread] if wanted.spread else wanted.selection
                yield from self._pairs(inner, source, variables)
                continue
            value = source.get(wanted.name)
            if callable(value):
                value = value(**_filled(wanted.arguments, variables))
            yield wanted.alias or wanted.name, self._shaped(value, wanted.selection, variables)

    def _shaped(self, value: Any, selection: list[Field], variables: Mapping[str, Any]) -> Any:
        if isinstance(value, list):
            return [self._shaped(item, selection, variables) for item in value]
        if not selection or value is None:
            return value
        return dict(self._pairs(selection, value, variables))

    # ------------------------------------------------------------ parsing

    def _definition(self) -> None:
        word = self._next()
        if word == "fragment":
            name = self._next()
            self._next(), self._next()  # "on" and the type
            self.fragments[name] = self._selection()
            return
        if word != "{":
            if self._peek() not in ("(", "{"):
                self.operation = self._next()
            if self._peek() == "(":
                self._declarations()
        else:
            self._at -= 1
        self.fields = self._selection()

    def _declarations(self) -> None:
        self._next()
        name = ""
        while (token := self._next()) != ")":
            if token.startswith("$"):
                name = token[1:]
            elif token == "=":
                self.defaults[name] = self._value()

    def _selection(self) -> list[Field]:
        fields = []
        self._next()
        while self._peek() != "}":
            fields.append(self._field())
        self._next()
        return fields

    def _field(self) -> Field:
        token, wanted = self._next(), Field()
        if token == "...":
            if self._peek() == "on":
                self._next(), self._next()
            elif self._peek() != "{":
                wanted.spread = self._next()
        else:
            wanted.name = token
            if self._peek() == ":":
                self._next()
                wanted.alias, wanted.name = token, self._next()
            if self._peek() == "(":
                wanted.arguments = self._arguments(")")
        while self._peek() == "@":
            self._next()
            wanted.condition = (self._next(), self._arguments(")")["if"])
        if self._peek() == "{":
            wanted.selection = self._selection()
        return wanted

    def _arguments(self, end: str) -> dict[str, Any]:
        found = {}
        self._next()
        while (name := self._next()) != end:
            self._next()
            found[name] = self._value()
        return found

    def _value(self) -> Any:
        token = self._peek()
        if token == "{":
            return self._arguments("}")
        self._next()
        if token == "[":
            items = []
            while self._peek() != "]":
                items.append(self._value())
            self._next()
            return items
        if token.startswith("$"):
            return Variable(token[1:])
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        return json.loads(token) if token[0] in '"-0123456789' else token

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]


def _included(wanted: Field, variables: Mapping[str, Any]) -> bool:
    if wanted.condition is None:
        return True
    kind, value = wanted.condition
    return bool(_filled(value, variables)) is (kind == "include")


def _filled(value: Any, variables: Mapping[str, Any]) -> Any:
    if isinstance(value, Variable):
        return variables.get(value.name)
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    return value
