"""Metric names: which may be used, what Stable-Baselines3's mean, and what each run has used so far.

A metric name is made of letters, digits, ``_``, ``-``, ``.`` and inner spaces, grouped by single
slashes: ``eval/mean_reward``. It has at most 250 characters, does not start with ``_`` (W&B keeps
its own values there) and is not ``global_step``, which is the x axis. One name means one thing for
the whole run: a number, an image or a video. ``custom`` beside ``custom/metric`` is fine: W&B keeps both.
"""

import difflib
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rl_research.errors import LoggingError, shown
from rl_research.system import write_atomically

log = logging.getLogger(__name__)

GLOBAL_STEP = "global_step"
MAX_LENGTH = 250
#: The metrics that Stable-Baselines3, sb3-contrib and this project log, and what they mean.
KNOWN: dict[str, str] = {
    "rollout/ep_rew_mean": "mean return of the last 100 training episodes",
    "rollout/ep_len_mean": "mean length of the last 100 training episodes, in steps",
    "rollout/success_rate": "share of successes among the last 100 training episodes",
    "rollout/exploration_rate": "probability of a random action (DQN, QR-DQN)",
    "eval/mean_reward": "mean return of the evaluation episodes",
    "eval/std_reward": "standard deviation of the return over the evaluation episodes",
    "eval/mean_ep_length": "mean length of the evaluation episodes, in steps",
    "eval/success_rate": "share of successes among the evaluation episodes",
    "train/learning_rate": "learning rate of the last update",
    "train/n_updates": "gradient updates so far",
    "train/loss": "total loss of the last update",
    "train/policy_loss": "policy loss (A2C)",
    "train/policy_gradient_loss": "clipped policy objective, negated (PPO)",
    "train/policy_objective": "surrogate objective (TRPO)",
    "train/value_loss": "loss of the value function",
    "train/entropy_loss": "negative mean entropy of the policy",
    "train/explained_variance": "share of the returns' variance that the value function explains",
    "train/approx_kl": "approximate divergence between old and new policy (PPO)",
    "train/clip_fraction": "share of samples whose policy ratio was clipped (PPO)",
    "train/clip_range": "clipping range of the policy ratio (PPO)",
    "train/clip_range_vf": "clipping range of the value function (PPO)",
    "train/std": "mean standard deviation of the actions (continuous, on-policy)",
    "train/actor_loss": "loss of the actor (SAC, TD3, DDPG, TQC)",
    "train/critic_loss": "loss of the critics (SAC, TD3, DDPG, TQC)",
    "train/ent_coef": "entropy coefficient (SAC, TQC)",
    "train/ent_coef_loss": "loss of the entropy coefficient (SAC, TQC)",
    "train/kl_divergence_loss": "divergence between old and new policy (TRPO)",
    "train/is_line_search_success": "share of line searches that found a step (TRPO)",
    "time/fps": "environment steps per second since training began",
    "time/iterations": "rollouts so far",
    "time/episodes": "training episodes so far",
    "time/time_elapsed": "seconds since training began",
    "time/total_timesteps": "environment steps so far",
}

_LIKENESS = 0.92  # 'eval/mean_rewrd' is as like as this; 'rollout/ep_rew_max' is a name of its own
_PART = r"(?!\.+(?:/|$))[A-Za-z0-9_.-](?:[A-Za-z0-9_. -]*[A-Za-z0-9_.-])?"
_NAME = re.compile(rf"(?!_){_PART}(?:/{_PART})*")
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_./ -]+")
_TABLE_ROW = re.compile(r"\| ([^|]+) \| (.*) \| (\d+) \|")  # name, description, first step


def check_name(name: object) -> str:
    """Return *name* if it may name a metric, an image or a video; else raise `LoggingError`."""
    if not isinstance(name, str):
        raise LoggingError(f"metric name {shown(name)} is not a string. Use for instance 'custom/name'.")
    if name == GLOBAL_STEP:
        raise LoggingError("'global_step' is the x axis of every chart. Give it as step=….")
    if len(name) > MAX_LENGTH:
        raise LoggingError(f"metric name {name[:40]!r}… has {len(name)} characters; {MAX_LENGTH} fit.")
    if not _NAME.fullmatch(name):
        raise LoggingError(
            f"{name!r} cannot name a metric: use letters, digits, '_', '-', '.' and inner spaces, "
            f"grouped by single slashes, not starting with '_'.{_mended(name)}"
        )
    return str(name)


def _mended(name: str) -> str:
    parts = (_FORBIDDEN.sub("_", part).strip(" ") for part in name.split("/"))
    mended = "/".join(part for part in parts if part.strip("._")).lstrip("_")
    return f" For instance {mended!r}." if _NAME.fullmatch(mended) else ""


def misspelt(name: str) -> str | None:
    """Return the known metric that *name* is probably meant to be; None if it is known itself."""
    if name in KNOWN or "/" not in name:
        return None
    return next(iter(difflib.get_close_matches(name, KNOWN, n=1, cutoff=_LIKENESS)), None)


class Names:
    """Names that one run has used, each for one kind of thing."""

    def __init__(self) -> None:
        self.first_step: dict[str, int] = {}
        self.descriptions: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self._given_step: dict[str, int] = {}
        self._not_finite: set[str] = set()

    def claim(self, names: Iterable[str], kind: str, step: int, given: bool = True) -> None:
        """Note that *names* are of *kind* and have reached *step*, or raise and note nothing.

        Only steps that were *given* must not go backwards, and only those of one name: a row about an earlier
        step may come late, as Stable-Baselines3's do.
        """
        names = list(names)
        for name in names:
            if (before := self._kinds.get(name, kind)) != kind:
                raise LoggingError(f"{name!r} names a {before} in this run; rename the {kind}.")
            if given and step < (reached := self._given_step.get(name, 0)):
                raise LoggingError(
                    f"{name!r} at step {step} comes after step {reached}: a metric's steps cannot go "
                    "backwards. Log in order; continue training with reset_num_timesteps=False, or begin "
                    "another run with a new ExperimentLogger."
                )
        for name in names:
            if name not in self._kinds:
                self._kinds[name], self.first_step[name] = kind, step
                if hint := misspelt(name):
                    log.warning("metric '%s' is logged as it is. Did you mean '%s'?", name, hint)
        if given:
            self._given_step.update(dict.fromkeys(names, step))

    def warn_if_not_finite(self, row: Mapping[str, object]) -> None:
        """Warn once of each metric that has become NaN or infinite; it is logged as it is."""
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value) and name not in self._not_finite:
                self._not_finite.add(name)
                log.warning("metric '%s' is %s; it is logged as it is, and said once.", name, value)

    def write_table(self, path: Path) -> None:
        """Write name, description and first step of every metric to *path*, as Markdown."""
        if not self.first_step:
            return
        lines = (
            path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        )  # an earlier segment's
        rows = {row[1]: (row[2], int(row[3])) for line in lines if (row := _TABLE_ROW.fullmatch(line))}
        for name, step in self.first_step.items():
            meaning = self.descriptions.get(name) or KNOWN.get(name, "")
            before = rows.get(name, ("", step))
            rows[name] = (meaning.replace("|", "\\|") or before[0], min(step, before[1]))
        lines = [f"| {name} | {text} | {step} |" for name, (text, step) in sorted(rows.items())]
        head = ["| name | description | first step |", "| --- | --- | --- |"]
        write_atomically(path, ("\n".join([*head, *lines]) + "\n").encode())
