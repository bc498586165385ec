"""Metric names, values, steps and thinning."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from rl_research.errors import LoggingError
from rl_research.tracking.metric_names import KNOWN, Names, check_name, misspelt
from rl_research.tracking.metrics import Steps, Thinner, flatten, scalar, scalars


@pytest.mark.parametrize(
    "name", ["reward", "eval/mean_reward", "a/b/c", "Q-value.1", "two words", "x" * 250, "a/_b", *KNOWN]
)
def test_good_names_are_taken_as_they_are(name: str) -> None:
    """A name within the documented rule stays what it is."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "_step",
        "_a/b",
        "global_step",
        "x" * 251,
        "a\nb",
        "é",
        "a%",
        "..",
        "a/../b",
        " a",
        "a ",
        "a/ b",
        3,
        None,
        ("a",),
    ],
)
def test_bad_names_are_one_clear_error(name: object) -> None:
    """A name that W&B or the rule refuses raises one line that repeats it."""
    with pytest.raises(LoggingError) as error:
        check_name(name)
    assert "\n" not in str(error.value)
    assert str(name)[:30] in str(error.value) or repr(name)[1:-1] in str(error.value)


def test_a_bad_name_comes_with_a_good_one() -> None:
    """The message proposes a name that is allowed."""
    with pytest.raises(LoggingError, match="For instance 'loss_mean_/x'"):
        check_name("/loss(mean)//x")


@pytest.mark.parametrize(
    ("metrics", "row"),
    [({}, {}), ({"a": 1}, {"a": 1}), ({"a": {"b": {"c": 1}, "d": 2}}, {"a/b/c": 1, "a/d": 2}), ({"a": {}}, {})],
)
def test_nested_mappings_are_spelt_by_slashes(metrics: dict, row: dict) -> None:
    """Nesting and slashes are two spellings of one name."""
    assert flatten(metrics) == row


@pytest.mark.parametrize("metrics", [None, 3, [("a", 1)], "a", {"a/b": 1, "a": {"b": 2}}, {1: 2}])
def test_what_is_no_row_is_refused(metrics: object) -> None:
    """A row is a mapping from distinct names."""
    with pytest.raises(LoggingError):
        flatten(metrics)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (True, True),
        (0.5, 0.5),
        ("text", "text"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(2.5), 2.5),
        (np.array([2]), 2),
        (torch.tensor(1.5), 1.5),
        (torch.tensor([3]), 3),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 4), 0.25),
        (2**70, float(2**70)),
        (math.inf, math.inf),
    ],
)
def test_numbers_of_every_kind_become_plain_ones(value: object, expected: object) -> None:
    """NumPy, torch and the standard library's numbers are taken at their value."""
    plain = scalar("x", value)
    assert plain == expected
    assert type(plain) is type(expected)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (None, "Leave it out"),
        (1 + 2j, "real"),
        (np.complex64(1), "real"),
        ([1, 2], "own name"),
        (np.zeros(2), "own name"),
        (np.zeros((4, 4)), "log_image"),
        (torch.zeros(3, 4, 4), "log_image"),
        (np.zeros((2, 4, 4, 3)), "log_video"),
        (object(), "save_model"),
        (np.zeros(0), "own name"),
        (np.array("2020", "datetime64"), "number"),
        (b"x", "number"),
    ],
)
def test_other_values_are_refused_with_a_remedy(value: object, remedy: str) -> None:
    """The error names the metric, the type and what to do instead."""
    with pytest.raises(LoggingError, match=rf"'some/x' is .*{remedy}"):
        scalars({"some": {"x": value}})


def test_a_name_may_begin_others() -> None:
    """With slashes, ``custom`` and ``custom/metric`` are two metrics, as in the guide."""
    names = Names()
    names.claim(["custom/metric"], "metric", 0)
    names.claim(["custom"], "metric", 1)
    assert names.first_step == {"custom/metric": 0, "custom": 1}
    with pytest.raises(LoggingError, match="'custom/metric' names a metric"):
        names.claim(["custom/metric"], "image", 2)
    with pytest.raises(LoggingError, match="'custom' names a metric"):
        names.claim(["custom"], "video", 2)


def test_a_name_is_of_one_kind() -> None:
    """What was a metric is not an image later."""
    names = Names()
    names.claim(["a"], "metric", 0)
    with pytest.raises(LoggingError, match="'a' names a metric"):
        names.claim(["a"], "image", 0)


def test_steps_of_a_metric_do_not_go_backwards() -> None:
    """A backward step names both steps; an equal one, or another metric's earlier one, is fine."""
    names = Names()
    names.claim(["a"], "metric", 10)
    names.claim(["a"], "metric", 10)
    names.claim(["b"], "metric", 5)
    with pytest.raises(LoggingError, match=r"step 9 comes after step 10.*reset_num_timesteps"):
        names.claim(["a"], "metric", 9)


@pytest.mark.parametrize("name", ["rollout/ep_rew_men", "eval/mean_rewrd", "train/explained_varience"])
def test_a_misspelt_known_metric_is_mentioned_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A near miss of a known name is logged, with one hint."""
    names = Names()
    with caplog.at_level(logging.WARNING):
        names.claim([name], "metric", 0)
        names.claim([name], "metric", 1)
    assert caplog.text.count("Did you mean") == 1


@pytest.mark.parametrize("name", ["eval/reward", "training/loss", "rollout/ep_rew_max", "custom", *KNOWN])
def test_names_of_ones_own_are_not_corrected(name: str) -> None:
    """Only near misses are taken for mistakes."""
    assert misspelt(name) is None


def test_steps_are_inherited_or_counted() -> None:
    """Rows without a step are numbered, until a step is known; then they belong to the furthest."""
    steps = Steps()
    assert [steps.of_row(None), steps.of_row(None), steps.of_media(None)] == [0, 1, 1]
    assert [steps.of_row(100), steps.of_row(None), steps.of_media(None)] == [100, 100, 100]
    assert [steps.of_row(50), steps.of_row(None)] == [50, 100]
    steps.reach(200)
    assert steps.of_row(None) == 200


@pytest.mark.parametrize("step", [-1, 1.5, True, "3", math.nan, math.inf, [1]])
def test_a_step_is_a_number_of_steps(step: object) -> None:
    """A step is a whole number from 0 on."""
    with pytest.raises(LoggingError, match="environment steps"):
        Steps().of_row(step)


@pytest.mark.parametrize("step", [3, 3.0, np.int64(3), np.float32(3)])
def test_whole_numbers_of_any_kind_are_steps(step: object) -> None:
    """NumPy's integers and whole floats are steps."""
    assert Steps().of_row(step) == 3


def test_thinning_averages_blocks_that_grow(caplog: pytest.LogCaptureFixture) -> None:
    """Five rows pass singly, then come means over 10, then over 100; nothing is lost."""
    thinner = Thinner(5)
    with caplog.at_level(logging.WARNING):
        emitted = [e for i in range(262) if (e := thinner.add(i, {"x": i, "s": str(i)}))]
        last = thinner.flush()
    assert emitted[:5] == [(i, {"x": i, "s": str(i)}) for i in range(5)]
    blocks = [range(at, at + 10) for at in range(5, 55, 10)] + [range(55, 155), range(155, 255)]
    assert emitted[5:] == [(b[-1], {"x": sum(b) / len(b), "s": str(b[-1])}) for b in blocks]
    assert last == (261, {"x": 258.0, "s": "261"})
    assert thinner.flush() is None
    assert caplog.text.count("max_rows=5") == 1


def test_a_block_averages_what_each_row_has() -> None:
    """A metric that some rows lack is averaged over the others; NaN stays NaN."""
    thinner = Thinner(1)
    thinner.add(0, {"a": 1})
    for i in range(9):
        assert thinner.add(i, {"a": 2} if i else {"b": 4, "c": math.nan}) is None
    step, row = thinner.add(20, {"a": 4}) or (0, {})
    assert step == 20
    assert row["a"] == pytest.approx(20 / 9)
    assert row["b"] == 4
    assert math.isnan(row["c"])


def test_the_table_keeps_what_an_earlier_segment_wrote(tmp_path: Path) -> None:
    """metrics.md holds name, description and first step, across segments of a run."""
    path = tmp_path / "metrics.md"
    first, second = Names(), Names()
    first.descriptions["mine"] = "a | b"
    first.claim(["mine", "eval/mean_reward"], "metric", 10)
    first.write_table(path)
    second.claim(["mine", "later"], "metric", 500)
    second.write_table(path)
    lines = path.read_text().splitlines()
    assert lines[0] == "| name | description | first step |"
    assert "| mine | a \\| b | 10 |" in lines
    assert f"| eval/mean_reward | {KNOWN['eval/mean_reward']} | 10 |" in lines
    assert "| later |  | 500 |" in lines
