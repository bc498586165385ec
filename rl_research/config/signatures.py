"""Plain values, as a configuration holds them, checked against a signature's annotations.

A signature is the specification: what it does not accept is refused here, before anything runs, and
what it accepts need not be listed again. Only the ranges are ours, for no annotation says them.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rl_research.config.messages import did_you_mean, shown
from rl_research.errors import ConfigError

_UNIT_INTERVAL = {
    "gamma", "gae_lambda", "tau", "exploration_fraction", "exploration_initial_eps",
    "exploration_final_eps", "line_search_shrinking_factor",
}  # fmt: skip
_POSITIVE = {
    "batch_size", "buffer_size", "cg_max_steps", "clip_obs", "clip_range", "clip_range_vf",
    "clip_reward", "epsilon", "learning_rate", "line_search_max_iter", "max_grad_norm",
    "n_critic_updates", "n_critics", "n_epochs", "n_quantiles", "n_steps", "policy_delay",
    "rms_prop_eps", "stats_window_size", "sub_sampling_factor", "target_kl",
    "target_update_interval", "train_freq",
}  # fmt: skip
_NOT_NEGATIVE = {
    "cg_damping", "ent_coef", "learning_starts", "renorm_warmup_steps", "target_noise_clip",
    "target_policy_noise", "top_quantiles_to_drop_per_net", "vf_coef",
}  # fmt: skip
_FROM_MINUS_ONE = {"gradient_steps", "sde_sample_freq"}

_FRIENDLY = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a word",
    dict: "a mapping", tuple: "a list", list: "a list", type(None): "null",
}  # fmt: skip


def accepted(function: Callable[..., Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """The annotation of each argument that *function* takes by name."""
    left_out = {"self", "args", "kwargs", *without}
    return {
        key: Any if isinstance(parameter.annotation, str) else parameter.annotation
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in left_out
    }


def check_name(where: str, key: str, value: Any, known: Iterable[str], owner: str) -> None:
    """Raise `ConfigError` if *owner*, whose arguments are *known*, has none called *key*."""
    known = sorted(known)
    if key not in known:
        raise ConfigError(
            f"{shown(where, value)}: {owner} has no argument '{key}'.{did_you_mean(key, known)} "
            f"It takes: {', '.join(known)}."
        )


def check_choice(where: str, value: Any, known: Sequence[str], what: str) -> None:
    """Raise `ConfigError` if *value* is none of *known*."""
    if value not in known:
        raise ConfigError(
            f"{shown(where, value)}: there is no such {what}.{did_you_mean(str(value), known)} "
            f"Choose from: {', '.join(known)}."
        )


def check_value(where: str, key: str, value: Any, annotation: Any, hint: str = "") -> None:
    """Raise `ConfigError` if *value* fits no type of *annotation*, or is out of *key*'s range."""
    kinds = plain_kinds(annotation)
    if not kinds:
        raise ConfigError(f"{shown(where, value)}: it takes an object, which no configuration can name.")
    if not any(_fits(value, kind) for kind in kinds):
        expected = " or ".join(sorted({_kind_name(kind) for kind in kinds}))
        raise ConfigError(f"{shown(where, value)}: should be {expected}{hint}.")
    if not _finite(value):
        wanted = "be a finite number" if isinstance(value, float) else "hold finite numbers only"
        raise ConfigError(f"{shown(where, value)}: should {wanted}.")
    check_range(where, key, value, value)


def check_range(where: str, key: str, number: Any, value: Any) -> None:
    """Raise `ConfigError` if *number*, which *value* stands for, is out of the range of *key*."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return
    wrong = None
    if key in _UNIT_INTERVAL and not 0 <= number <= 1:
        wrong = "should be between 0 and 1"
    elif key in _POSITIVE and not number > 0:
        wrong = "should be greater than 0"
    elif key in _NOT_NEGATIVE and not number >= 0:
        wrong = "should not be negative"
    elif key in _FROM_MINUS_ONE and not number >= -1:
        wrong = "should not be less than -1"
    if wrong:
        raise ConfigError(f"{shown(where, value)}: {wrong}.")


def plain_kinds(annotation: Any) -> list[Any]:
    """The members of *annotation* that YAML can spell."""
    plain = set(_FRIENDLY)
    found = members(annotation)
    if Any in found:
        return [object]
    return [kind for kind in found if (typing.get_origin(kind) or kind) in plain]


def members(annotation: Any) -> list[Any]:
    """The types a union offers, or the one type that *annotation* is."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for member in typing.get_args(annotation) for kind in members(member)]
    return [annotation]


def _fits(value: Any, annotation: Any) -> bool:
    return any(_fits_one(value, kind) for kind in members(annotation))


def _fits_one(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (int, float):
        return not isinstance(value, bool) and isinstance(value, int | float if origin is float else int)
    if origin is tuple:
        fits = isinstance(value, list | tuple) and (not inner or len(value) == len(inner))
        return fits and all(map(_fits, value, inner))
    if not isinstance(value, origin):
        return False
    if origin is list and inner:
        return all(_fits(member, inner[0]) for member in value)
    if origin is dict and inner:
        return all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    return True


def _kind_name(kind: Any) -> str:
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is list and inner in ((int,), (str,)):
        return f"a list of {'whole numbers' if inner == (int,) else 'words'}"
    return _FRIENDLY[typing.get_origin(kind) or kind]


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(_finite, value))
