"""Plain values, as a configuration holds them, checked against the annotations of a signature.

The signature is the specification: what it does not accept is refused here, before anything runs, and
what it accepts need not be listed again. Only the ranges are ours, for no annotation has them.
"""

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rl_research.config.messages import did_you_mean, members, mistake

_RANGES: list[tuple[str, Callable[[float], bool], str]] = [
    (
        "gamma gae_lambda tau exploration_fraction exploration_initial_eps exploration_final_eps "
        "line_search_shrinking_factor",
        lambda number: 0 <= number <= 1,
        "should be between 0 and 1",
    ),
    (
        "batch_size buffer_size cg_max_steps clip_obs clip_range clip_range_vf clip_reward delta_std epsilon "
        "learning_rate line_search_max_iter lstm_hidden_size max_grad_norm n_critic_updates n_critics n_delta "
        "n_epochs n_eval_episodes n_lstm_layers n_quantiles n_steps n_top policy_delay rms_prop_eps "
        "stats_window_size sub_sampling_factor target_kl target_update_interval train_freq",
        lambda number: number > 0,
        "should be greater than 0",
    ),
    (
        "cg_damping ent_coef learning_starts n_sampled_goal renorm_warmup_steps target_noise_clip target_policy_noise "
        "top_quantiles_to_drop_per_net vf_coef",
        lambda number: number >= 0,
        "should not be negative",
    ),
    ("gradient_steps sde_sample_freq", lambda number: number >= -1, "should not be less than -1"),
]
_RANGE_OF = {key: (fits, reason) for keys, fits, reason in _RANGES for key in keys.split()}

_FRIENDLY = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a word",
    dict: "a mapping", tuple: "a list", list: "a list", types.NoneType: "null",
}  # fmt: skip


def accepted(function: Callable[..., Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """Return the annotation of each argument that *function* takes by name."""
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
        hint = f"{did_you_mean(key, known)} It takes: {', '.join(known)}."
        raise mistake(where, value, f"{owner} has no argument '{key}'.{hint}")


def fits(value: Any, annotation: Any) -> bool:
    """Return whether *value* is of the type *annotation*; of numbers, only an int is taken for a float."""
    strict = TypeAdapter[Any](annotation, config=ConfigDict(strict=True))
    try:
        strict.validate_json(json.dumps(value))  # not as Python: strict JSON has a list for a tuple
    except ValidationError:
        return False
    return True


def check_value(where: str, key: str, value: Any, annotation: Any, hint: str = "") -> None:
    """Raise `ConfigError` if *value* fits no type of *annotation*, or is out of *key*'s range."""
    kinds = _plain_kinds(annotation)
    if not kinds:
        raise mistake(where, value, "it takes an object, which no configuration can name.")
    if kinds == [types.NoneType] and value is not None:
        raise mistake(where, value, "it takes a class, which no configuration can name. Leave it out.")
    if not fits(value, typing.Union[tuple(kinds)]):  # noqa: UP007  # of a list
        expected = " or ".join(sorted({_kind_name(kind) for kind in kinds}))
        raise mistake(where, value, f"should be {expected}{hint}.")
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        wanted = "be a finite number" if isinstance(value, float) else "hold finite numbers only"
        raise mistake(where, value, f"should {wanted}.") from None
    check_range(where, key, value, value)


def check_range(where: str, key: str, number: Any, value: Any) -> None:
    """Raise `ConfigError` if *number*, which *value* stands for, is out of the range of *key*."""
    if key in _RANGE_OF and isinstance(number, int | float) and not isinstance(number, bool):
        fits, reason = _RANGE_OF[key]
        if not fits(number):
            raise mistake(where, value, f"{reason}.")


def _plain_kinds(annotation: Any) -> list[Any]:
    """Return the members of *annotation* that YAML can spell."""
    found = members(annotation)
    if Any in found:
        return [Any]
    return [kind for kind in found if (typing.get_origin(kind) or kind) in _FRIENDLY]


def _kind_name(kind: Any) -> str:
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is list and inner in ((int,), (str,)):
        return f"a list of {'whole numbers' if inner == (int,) else 'words'}"
    return _FRIENDLY[typing.get_origin(kind) or kind]
