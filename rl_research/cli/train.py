"""``rl-research train``: train, score and report one experiment."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rl_research.cli.common import hide_secrets, own_stdout, prefect_api
from rl_research.cli.terminal import help_on_settings, summary

if TYPE_CHECKING:
    from rl_research.cli.common import Verbs

_log = logging.getLogger(__name__)


def add(verbs: Verbs) -> None:
    """Add the verb to the command's *verbs*."""
    train = verbs.add_parser(
        "train", help="train, score and report one experiment", add_help=False, allow_abbrev=False
    )
    train.add_argument("overrides", nargs="*", metavar="key=value")
    train.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    train.add_argument("--cfg", action="store_true", help="print the composed configuration")
    train.add_argument("-h", "--help", action="store_true", help="list groups and settings")
    train.set_defaults(verb=_train, parser=train)


def _train(given: argparse.Namespace) -> int:
    if given.help:
        sys.stdout.write(help_on_settings())
        return 0
    from rl_research.config import compose, load_config

    config = load_config(given.overrides)
    hide_secrets(given)
    if given.cfg:
        import yaml

        from rl_research.tracking import public

        composed = compose(given.overrides)
        composed["storage"] = public(composed["storage"])
        sys.stdout.write(yaml.safe_dump(composed, sort_keys=False, allow_unicode=True))
        return 0
    with own_stdout() as answer:
        from rl_research.runs import left_of
        from rl_research.training import finished_result, preflight

        done = finished_result(config)
        if done is not None and not left_of(done):
            _log.info("run %s is finished: its result is returned", config.run_id)
            _answer_train(given, answer, done)
            return 0
        with prefect_api() as api:
            if done is None:
                preflight(config)
            _log.info(
                "%s: %s on %s, seed %d, %s steps",
                config.name,
                config.algorithm.name.upper(),
                config.env.id,
                config.experiment.seed,
                f"{config.experiment.total_timesteps:,}",
            )
            from rl_research.cli.flow_calls import train

        _answer_train(given, answer, train(given.overrides, api))
    return 0


def _answer_train(
    given: argparse.Namespace, answer: Callable[[str], None], record: Mapping[str, Any]
) -> None:
    from rl_research.runs import result_of

    result = result_of(record)
    answer(json.dumps(result) + "\n" if given.json else summary(result))
