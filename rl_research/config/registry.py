"""Names for code that configuration may use: the libraries' own, and those that a user's plugins register.

A plugin is a module that decorates what it brings; the setting ``plugins`` says which modules are imported::

    @rl_research.register.features_extractor("my_cnn")
    class MyCNN(BaseFeaturesExtractor): ...

A configuration holds names and plain values only, so it never names code to run.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rl_research.config.messages import did_you_mean, mistake
from rl_research.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z_]\w*")
#: Gymnasium's wrappers that write files or open windows, or take part in `gymnasium.make` already.
_NO_WRAPPERS = {"vector", "RecordVideo", "HumanRendering", "RenderCollection", "Autoreset", "PassiveEnvChecker"}


class Kind:
    """Names of one kind of thing; called with a name, it returns the decorator that registers one.

    :param title: what messages call such a thing
    :param base: the class that it derives from, as ``module:class``; empty: anything that can be called is one
    :param ours: names that need no plugin, each with ``module:attribute``
    """

    def __init__(self, title: str, base: str = "", ours: Callable[[], Mapping[str, str]] = dict):
        self.title, self.base, self.ours = title, base, ours
        self.registered: dict[str, Callable[..., Any]] = {}

    def __call__(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function as *name*; it raises `ConfigError`."""
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            example = f"@rl_research.register.{self.title.replace(' ', '_')}('my_{self.title.split()[-1]}')"
            raise self._refusal(name, f"a name is needed, of letters, digits and '_', as in {example}.")

        def add(part: T) -> T:
            self._check(name, part)
            self.registered[name] = part
            return part

        return add

    def find(self, where: str, name: object) -> Callable[..., Any]:
        """Return what *name*, the value of the setting *where*, stands for; `ConfigError` if it is no such name."""
        if isinstance(name, str) and name in self.registered:
            return self.registered[name]
        ours = self.ours()
        if name not in ours:
            known = [*self.registered, *ours]
            choice = f" Choose from: {', '.join(known)}." if known else ""
            hint = f"{did_you_mean(str(name), known)}{choice} The modules in plugins=[MODULE] register others."
            raise mistake(where, name, f"there is no such {self.title}.{hint}")
        module, _, attribute = ours[str(name)].partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return found

    def _refusal(self, name: object, reason: str) -> ConfigError:
        return ConfigError(f"rl_research.register of the {self.title} {name!r}: {reason}")

    def _check(self, name: str, part: Callable[..., Any]) -> None:
        if self.base and not (isinstance(part, type) and issubclass(part, self._base())):
            raise self._refusal(name, f"{part!r} is no class that derives from {self.base.replace(':', '.')}.")
        if not callable(part):
            raise self._refusal(name, f"{part!r} is neither a class nor a function.")
        if name in self.ours():
            raise self._refusal(name, "the name is taken by what needs no plugin. Choose another.")
        before = self.registered.get(name, part)
        if (before.__module__, before.__qualname__) != (part.__module__, part.__qualname__):  # else a reload
            taken = f"{before.__module__}.{before.__qualname__}"
            raise self._refusal(
                name, f"{part.__module__}.{part.__qualname__} and {taken} have the same name. Rename one."
            )

    def _base(self) -> type:
        module, _, name = self.base.partition(":")
        base: type = getattr(importlib.import_module(module), name)
        return base


def _in_module(module: str, *names: str) -> Callable[[], Mapping[str, str]]:
    return lambda: {name: f"{module}:{name}" for name in names}


def _wrappers() -> Mapping[str, str]:
    """Return Gymnasium's wrappers, and SB3's for Atari, by class name, and as ``frame_stack_observation``."""
    from gymnasium import wrappers

    names = [name for name in wrappers.__all__ if name not in _NO_WRAPPERS]
    found = {name: f"gymnasium.wrappers:{name}" for name in names}
    found |= {"AtariWrapper": f"{_SB3}.atari_wrappers:AtariWrapper", "Monitor": f"{_SB3}.monitor:Monitor"}
    return {**found, **{re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(): place for name, place in found.items()}}


def _algorithms() -> Mapping[str, str]:
    from rl_research.config.algorithms import names

    return dict.fromkeys(names(), "")  # `algorithm_class` finds their classes


_SB3 = "stable_baselines3.common"


class Register:
    """A decorator for each kind, as in ``@rl_research.register.policy("my_policy")``."""

    algorithm = Kind("algorithm", f"{_SB3}.base_class:BaseAlgorithm", _algorithms)
    policy = Kind(
        "policy",
        f"{_SB3}.policies:BasePolicy",
        _in_module(
            "", *(f"{seen}{kind}Policy" for seen in ("Mlp", "Cnn", "MultiInput", "Linear") for kind in ("", "Lstm"))
        ),
    )
    features_extractor = Kind(
        "features extractor",
        f"{_SB3}.torch_layers:BaseFeaturesExtractor",
        _in_module(f"{_SB3}.torch_layers", "FlattenExtractor", "NatureCNN", "CombinedExtractor"),
    )
    activation = Kind(
        "activation",
        "torch.nn:Module",
        _in_module("torch.nn", "ELU", "GELU", "LeakyReLU", "Mish", "ReLU", "SiLU", "Softplus", "Tanh"),
    )
    optimizer = Kind("optimizer", "torch.optim:Optimizer", _in_module("torch.optim", "Adam", "AdamW", "RMSprop", "SGD"))
    schedule = Kind("schedule")
    wrapper = Kind("wrapper", "gymnasium:Wrapper", _wrappers)
    vec_wrapper = Kind(
        "vec wrapper",
        f"{_SB3}.vec_env:VecEnvWrapper",
        _in_module(f"{_SB3}.vec_env", "VecCheckNan", "VecExtractDictObs", "VecFrameStack"),
    )
    callback = Kind("callback", f"{_SB3}.callbacks:BaseCallback")
    sink = Kind("sink")

    def kinds(self) -> dict[str, Kind]:
        """Return the kinds by name."""
        return {name: kind for name, kind in vars(Register).items() if isinstance(kind, Kind)}

    def registered(self) -> dict[str, list[str]]:
        """Return the names that plugins have registered, by kind."""
        return {name: sorted(kind.registered) for name, kind in self.kinds().items() if kind.registered}


register = Register()
