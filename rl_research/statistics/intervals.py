"""The interquartile mean of a handful of scores, their intervals, and who is better than whom.

The measures and the reasons for them are those of Agarwal et al., *Deep Reinforcement Learning at the Edge
of the Statistical Precipice*, NeurIPS 2021 (the paper behind ``rliable``).

An interval speaks about what is resampled. Over the seeds of a study it is about training again with another
seed. Over the episodes of one run it is about meeting that very policy again, and says nothing of seeds.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MIN_VALUES = 3  # with fewer values an interval would look certain without being so
_BATCH_ELEMENTS = 4_000_000  # bounds the memory of the resamples, not their outcome


class Interval(NamedTuple):
    """From *low* to *high*, ends included."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and bool(self.low <= value <= self.high)


def iqm(values: ArrayLike) -> float:
    """Return the interquartile mean: that of the values without the lowest and the highest quarter.

    One outlier moves it less than the mean, and it wastes less than the median (Agarwal et al. 2021,
    section 4.3). As in ``rliable``, seeds × tasks are pooled, and ⌊n/4⌋ values go at either end.
    """
    return float(_iqm(_finite(values).ravel()))


def bootstrap_interval(
    values: ArrayLike,
    statistic: Literal["mean", "iqm"] = "mean",
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interval | None:
    """Return the percentile bootstrap interval of *statistic*, None for fewer than `MIN_VALUES` values.

    *values* are seeds, or seeds × tasks; then each task's seeds are resampled by themselves, the
    stratified bootstrap of Agarwal et al. 2021. The same arguments give the same interval.
    """
    scores = _finite(values)
    if scores.ndim > 2:
        raise ValueError(f"values must be seeds or seeds × tasks, not {scores.ndim}-dimensional")
    if statistic not in _STATISTICS:
        raise ValueError(f"statistic={statistic!r}: choose from {', '.join(_STATISTICS)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1, for instance 0.95")
    if len(scores) < MIN_VALUES:
        return None
    if np.all(scores == scores[0]):
        constant = float(_STATISTICS[statistic](scores[0].ravel(), -1))
        return Interval(constant, constant)
    from scipy.stats import bootstrap

    interval = bootstrap(
        tuple(scores.reshape(len(scores), -1).T),
        lambda *tasks, axis: _STATISTICS[statistic](np.concatenate(tasks, axis=axis), axis),
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, _BATCH_ELEMENTS // scores.size),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Return how probable it is that a seed of *x* scores above a seed of *y*; ties count half.

    *x* and *y* are seeds, or seeds × the same tasks: then it is the mean over tasks, as in Agarwal
    et al. 2021, section 4.3. Half means that neither is better.
    """
    ours, theirs = (scores.reshape(len(scores), -1) for scores in (_finite(x), _finite(y)))
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"x has {ours.shape[1]} tasks and y has {theirs.shape[1]}: compare the same")
    wins = (ours[:, None] > theirs[None]) + 0.5 * (ours[:, None] == theirs[None])
    return float(wins.mean())


def _iqm(values: Floats, axis: int = -1) -> Any:
    ordered = np.sort(values, axis=axis)
    n = ordered.shape[axis]
    return np.take(ordered, range(n // 4, n - n // 4), axis=axis).mean(axis=axis)


_STATISTICS: dict[str, Callable[[Floats, int], Any]] = {"mean": np.mean, "iqm": _iqm}


def _finite(values: ArrayLike) -> Floats:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim == 0 or scores.size == 0:
        raise ValueError("there are no values to summarise")
    if not np.isfinite(scores).all():
        raise ValueError("a value is NaN or infinite; leave out or repair that run first")
    return scores
