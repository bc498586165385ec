"""The numbers of Agarwal et al. 2021, as rliable 1.2.0 computes them, and honest refusals."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from rl_research.statistics.intervals import MIN_VALUES, Interval, bootstrap_interval, iqm, probability_of_improvement

# Seeds × tasks; the expected values were computed with rliable 1.2.0 at 50,000 resamples.
X = [[0.91, 0.40, 0.77], [0.95, 0.55, 0.70], [0.20, 0.61, 0.81], [0.99, 0.47, 0.66], [0.93, 0.52, 0.90]]
Y = [[0.80, 0.30, 0.60], [0.85, 0.45, 0.75], [0.10, 0.41, 0.71], [0.89, 0.57, 0.56], [0.83, 0.42, 0.70]]


@pytest.mark.parametrize(("scores", "expected"), [(X, 0.714444), (Y, 0.617778)])
def test_iqm_is_that_of_rliable(scores, expected):
    """The interquartile mean of seeds × tasks agrees with rliable to six digits."""
    assert iqm(scores) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("values", "expected"), [([7.0], 7.0), ([1, 3], 2.0), ([0, 1, 2, 100], 1.5), ([5] * 9, 5.0)])
def test_iqm_of_few_values(values, expected):
    """With fewer than four values nothing is cut; from four on the outer quarters go."""
    assert iqm(values) == expected


@pytest.mark.parametrize(
    ("scores", "statistic", "expected"),
    [(X, "iqm", (0.6022, 0.7911)), (X, "mean", (0.5867, 0.7660)), (Y, "iqm", (0.5122, 0.6922))],
)
def test_interval_agrees_with_rliable(scores, statistic, expected):
    """The stratified percentile bootstrap meets rliable's intervals within resampling noise."""
    interval = bootstrap_interval(scores, statistic, resamples=50_000)
    assert interval == pytest.approx(expected, abs=0.006)


def test_probability_of_improvement_is_that_of_rliable():
    """P(x > y), averaged over tasks, is rliable's .78, and the reverse completes it to one."""
    assert probability_of_improvement(X, Y) == pytest.approx(0.78)
    assert probability_of_improvement(Y, X) == pytest.approx(0.22)


def test_ties_count_half():
    """Two equal sets of scores are a coin toss."""
    assert probability_of_improvement([500, 500, 500], [500, 500]) == 0.5
    assert probability_of_improvement([3, 4], [1, 2]) == 1.0


@pytest.mark.parametrize("n", range(1, MIN_VALUES))
def test_no_interval_from_too_few_values(n):
    """One seed has no interval, rather than one of zero width that looks like certainty."""
    assert bootstrap_interval(np.arange(float(n))) is None
    assert bootstrap_interval(np.ones((n, 8))) is None


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
@pytest.mark.parametrize("value", [500.0, 0.1, -200.0])
def test_equal_values_have_an_interval_of_zero_width(statistic, value):
    """A hundred CartPole episodes of 500 give [500, 500], without a warning and without NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_interval([value] * 100, statistic)
    assert low == high == pytest.approx(value)


def test_the_same_seed_gives_the_same_interval():
    """An interval is a function of its arguments; another seed moves it a little."""
    scores = np.random.default_rng(1).normal(size=20)
    state = np.random.get_state()[1].copy()
    assert bootstrap_interval(scores, seed=4) == bootstrap_interval(scores, seed=4)
    assert bootstrap_interval(scores, seed=4) != bootstrap_interval(scores, seed=5)
    assert (np.random.get_state()[1] == state).all()


def test_more_confidence_is_wider():
    """A 99% interval contains the 80% interval, and both contain the mean."""
    scores = np.random.default_rng(2).normal(size=30)
    narrow, wide = (bootstrap_interval(scores, confidence=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < scores.mean() < narrow.high < wide.high


def test_many_values_stay_in_bounded_memory():
    """Ten thousand episodes are resampled in batches, and batches do not change the outcome."""
    scores = np.random.default_rng(3).normal(size=10_000)
    interval = bootstrap_interval(scores, resamples=500)
    assert scores.mean() in interval
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / 100, rel=0.2)


def test_an_interval_knows_what_it_contains():
    """`value in interval` compares with the ends, both included."""
    assert 500.0 in Interval(500.0, 500.0)
    assert 474.9 not in Interval(475.0, 500.0)
    assert None not in Interval(0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: iqm([]), "no values"),
        (lambda: iqm([1.0, float("nan")]), "NaN or infinite"),
        (lambda: bootstrap_interval([1, 2, float("inf")]), "NaN or infinite"),
        (lambda: bootstrap_interval([1, 2, 3], confidence=95), "between 0 and 1"),
        (lambda: bootstrap_interval([1, 2, 3], "median"), "choose from mean, iqm"),
        (lambda: bootstrap_interval(np.ones((3, 3, 3))), "seeds × tasks"),
        (lambda: probability_of_improvement(X, [1.0, 2.0]), "3 tasks and y has 1"),
    ],
)
def test_what_has_no_answer_is_refused(call, says):
    """Empty, diverged or mismatched scores raise, so that no summary hides them."""
    with pytest.raises(ValueError, match=says):
        call()
