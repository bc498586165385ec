"""Plain values, as a configuration holds them, checked against the annotations of a signature.

The signature is the specification: what it does not accept is refused here, before anything runs, and
what it accepts need not be listed again. Only the ranges are ours, for no annotation has them.
"""

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rl_research.config.messages import did_you_mean, members, mistake
from rl_research.errors import ConfigError

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


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return what *function* takes by name, what is positional first.

    A class whose constructor takes ``**kwargs`` also takes what the constructor of its base does.
    """
    found: dict[str, inspect.Parameter] = {}
    for one, skipped in _constructors(function):
        here = list(_signature(one).parameters.values())[skipped:]
        named = [p for p in here if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        found = {p.name: p for p in named} | found
        if all(p.kind != p.VAR_KEYWORD for p in here):
            break
    return dict(sorted(found.items(), key=lambda item: item[1].kind))


def accepted(function: Callable[..., Any], without: Iterable[str] = ()) -> dict[str, Any]:
    """Return the annotation of each argument that *function* takes by name."""
    return {key: _annotation(one) for key, one in parameters(function).items() if key not in without}


def check_arguments(where: str, taken: Sequence[inspect.Parameter], given: Mapping[str, Any], owner: str) -> None:
    """Raise `ConfigError` unless *owner*, which takes the parameters *taken*, can be called with *given*."""
    known = {parameter.name: parameter for parameter in taken}
    for key, value in given.items():
        check_name(f"{where}.{key}", key, value, known, owner)
        check_value(f"{where}.{key}", key, value, _annotation(known[key]))
    missing = [p.name for p in taken if p.default is p.empty and p.name not in given]
    if missing:
        example = ", ".join(f"{name}: VALUE" for name in missing)
        raise ConfigError(
            f"{where}: {owner} needs {' and '.join(missing)}. Write {{{where.rpartition('.')[2]}: {{{example}}}}}."
        )


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


def _constructors(function: Callable[..., Any]) -> list[tuple[Callable[..., Any], int]]:
    """Return what is called for *function*, innermost last, each with the number of parameters that are not named."""
    if not isinstance(function, type):
        return [(function, 0)]
    return [(vars(k)["__init__"], 1) for k in function.__mro__ if "__init__" in vars(k) and k is not object]


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except Exception:  # noqa: BLE001  # a name in quotes that is imported for type checkers alone
        return inspect.signature(function)


def _annotation(parameter: inspect.Parameter) -> Any:
    unknown = isinstance(parameter.annotation, str) or parameter.annotation is parameter.empty
    return Any if unknown else parameter.annotation


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
