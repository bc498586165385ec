"""Whatever is handed to the logger is logged as well as it can be, or refused in one line."""

from __future__ import annotations

import enum
import json
import random
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from rl_research.errors import ConfigError, LoggingError
from rl_research.tracking import provenance
from rl_research.tracking.logger import ExperimentLogger


class _Broken(Mapping[str, object]):
    """A mapping whose every method fails."""

    def __getitem__(self, key: str) -> object:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        yield "a"

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class _WithoutShape:
    @property
    def shape(self) -> object:
        raise RuntimeError("no shape")

    def numel(self) -> int:
        raise RuntimeError("no number")

    __str__ = __repr__ = numel  # type: ignore[assignment]


class _Huge(enum.Enum):
    ONE = 10**400


def _in_itself() -> dict[str, object]:
    loop: dict[str, object] = {}
    loop["self"], loop["list"] = loop, [loop]
    return loop


def _nested(levels: int, branches: str = "d") -> dict[str, object]:
    deep: dict[str, object] = {}
    for _ in range(levels):
        deep = dict.fromkeys(branches, deep)
    return deep


ODD: dict[str, Any] = {
    "in itself": _in_itself(), "very deep": _nested(5000), "very broad": _nested(50, "ab"),
    "beyond a float": 10**400, "beyond what Python writes out": -(10**6000), "beyond 64 bits": 2**80,
    "long double": np.longdouble("1e4000"), "decimal": Decimal("1e400"), "signalling": Decimal("sNaN"),
    "fraction": Fraction(10**400), "enum": _Huge.ONE, "nan": float("nan"), "infinite": -np.inf,
    "complex": 1j, "complex array": np.array([1j, 2]), "array of itself": np.array([_in_itself(), 1], dtype=object),
    "array of None": np.array(None, dtype=object), "record": np.zeros(1, dtype=[("a", int)])[0],
    "date": np.datetime64("2020"), "meta tensor": torch.empty(1, device="meta"), "sparse": torch.ones(1).to_sparse(),
    "broken mapping": _Broken(), "broken object": _WithoutShape(), "generator": (i for i in ()), "class": int,
    "surrogate": "a\udcffb", "zero byte": "a\0b", "bytes": b"\xff", "none": None, "set": {1, "a"}, "text": "x",
    "long": "x" * 10_000, "lines": "a\nb\x1b[31m", "path": Path("somewhere"), "array": np.zeros(3),
    "keys": {1: 2, (1, 2): 3, None: 4, _WithoutShape(): 5, "a\udcff": 6, 10**6000: 7},
}  # fmt: skip
METHODS: dict[str, Callable[[ExperimentLogger, Any], object]] = {
    "metric": lambda logger, value: logger.log_metrics({"x": value}),
    "metrics": lambda logger, value: logger.log_metrics(value),
    "summary": lambda logger, value: logger.log_summary({"y": value}),
    "config": lambda logger, value: logger.log_config({"x": value}),
    "configs": lambda logger, value: logger.log_config(value),
    "description": lambda logger, value: logger.describe_metrics({"x": value}),
    "descriptions": lambda logger, value: logger.describe_metrics(value),
    "image": lambda logger, value: logger.log_image("image", value),
    "caption": lambda logger, value: logger.log_image("image", np.zeros((8, 8, 3), np.uint8), caption=value),
    "metadata": lambda logger, value: logger.log_checkpoint("art", "/nowhere", {}, {"x": value}),
    "all metadata": lambda logger, value: logger.log_checkpoint("art", "/nowhere", {}, value),
    "artifact": lambda logger, value: logger.log_checkpoint(value, "/nowhere", {}, {}),
    "uri": lambda logger, value: logger.log_checkpoint("art", value, {}, {}),
    "alias": lambda logger, value: logger.log_checkpoint("art", "/nowhere", {}, {}, [value]),
    "step": lambda logger, value: logger.log_metrics({"z": 1.0}, step=value),
    "name": lambda logger, value: logger.log_image(value, np.zeros((8, 8, 3), np.uint8)),
    "film": lambda logger, value: logger.log_video("film", value),
    "frame": lambda logger, value: logger.log_video("film", [value]),
    "fps": lambda logger, value: logger.log_video("film", np.zeros((2, 16, 16, 3), np.uint8), fps=value),
}
#: What the logger is opened with; a configuration's mistakes have a line each.
ARGUMENTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "config": lambda value: {"config": value},
    "env": lambda value: {"env": value},
    "run_id": lambda value: {"run_id": value},
    "run_dir": lambda value: {"run_dir": value},
    **{
        key: lambda value, key=key: {"config": {"wandb": {"mode": "disabled"}, key: value}}  # type: ignore[misc]
        for key in ("run_id", "runs_dir", "env", "experiment", "wandb")
    },
    **{
        f"wandb.{key}": lambda value, key=key: {"config": {"wandb": {"mode": "disabled", key: value}}}  # type: ignore[misc]
        for key in ("project", "tags", "mode", "dir", "max_rows", "fallback", "init_timeout", "unknown")
    },
}


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExperimentLogger]:
    """A logger of an offline run, in a folder of its own."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    with ExperimentLogger({"wandb": {"project": "odd"}}, run_id="odd") as opened:
        yield opened


def _taken(act: Callable[[], object], lines: int = 1) -> bool:
    """Whether *act* does what it is to do; else it raises one line of ours, or so many."""
    try:
        act()
    except (LoggingError, ConfigError) as error:
        said = str(error).split("\n")
        assert len(said) <= lines
        assert all(0 < len(line) < 1000 and line.isprintable() for line in said)
        return False
    return True


@pytest.mark.parametrize("method", METHODS)
def test_no_value_gets_anything_but_a_line(method: str, logger: ExperimentLogger) -> None:
    """Every odd value, and lists and mappings of such by chance, is taken or refused in one line of ours."""
    chance = random.Random(method)
    names = list(ODD)
    mixed = [
        {name: chance.choice((ODD[name], [ODD[name]], {"in": ODD[name]})) for name in chance.sample(names, 3)}
        for _ in range(30)
    ]
    for value in (*ODD.values(), *mixed):
        _taken(lambda value=value: METHODS[method](logger, value))  # type: ignore[misc]
    assert _taken(lambda: logger.log_metrics({"after": 1.0})), "the logger goes on"


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_no_argument_gets_anything_but_a_line(argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger opens with every odd value, or refuses it in a line; it does not hang over what it would say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled") if argument != "wandb.mode" else None
    for value in ODD.values():
        given = {"config": {"wandb": {"mode": "disabled"}}, "run_dir": tmp_path / "run", **ARGUMENTS[argument](value)}
        _taken(lambda given=given: ExperimentLogger(**given).finish(), lines=10)  # type: ignore[misc]
    usual = {"config": {"wandb": {"mode": "disabled"}}, "run_dir": tmp_path / "next"}
    assert _taken(lambda: ExperimentLogger(**usual).finish()), "the next logger opens"


def test_a_logger_opens_with_a_configuration_in_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration costs no run: the row that is logged after it is on disk."""
    monkeypatch.chdir(tmp_path)
    logger = ExperimentLogger({"wandb": {"mode": "offline"}, "x": _in_itself(), "y": _nested(5000)})
    logger.log_metrics({"after": 1.0}, step=1)
    logger.finish()
    assert logger.finished


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_what_is_made_public_is_json(value: object) -> None:
    """Strictly: without NaN, without integers that its readers change, and in UTF-8."""
    found = json.dumps(provenance.public({"x": value}), allow_nan=False, ensure_ascii=False).encode()
    assert len(found) < 1_000_000


def test_what_stands_for_what_cannot_be_kept() -> None:
    """The rest of a configuration is as it was."""
    loop = _in_itself()
    assert provenance.public({"d": loop, "seed": 2**80, "lr": 0.1}) == {
        "d": {"self": "…", "list": ["…"]}, "seed": str(2**80), "lr": 0.1,
    }  # fmt: skip
    assert provenance.public({"x": 10**6000}) == {"x": "an integer of 19,932 bits"}
    twice = {"a": 1}
    assert provenance.public({"x": [twice, twice]}) == {"x": [twice, twice]}, "the same again is not in itself"


def test_an_interpolation_without_a_value_is_one_line() -> None:
    """As OmegaConf's exceptions are not."""
    with pytest.raises(ConfigError, match="cannot be read: Interpolation key 'nowhere' not found") as error:
        ExperimentLogger(OmegaConf.create({"wandb": {}, "x": "${nowhere}"}))
    assert "\n" not in str(error.value)
