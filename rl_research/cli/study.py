"""``rl-research study``: an experiment under several settings and seeds, compared over the seeds."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import TYPE_CHECKING, Any

from rl_research.cli.common import hide_secrets, own_stdout, positive, prefect_api

if TYPE_CHECKING:
    from rl_research.cli.common import Verbs


def add(verbs: Verbs) -> None:
    """Add the verb to the command's *verbs*."""
    study = verbs.add_parser(
        "study", help="train several seeds and settings, and compare them", allow_abbrev=False
    )
    study.add_argument("name", help="of the study; started again, it goes on")
    study.add_argument("overrides", nargs="*", metavar="key=value")
    study.add_argument("--seeds", type=_seeds, default=[0, 1, 2], metavar="0,1,2")
    study.add_argument(
        "--setting", action="append", default=[], type=shlex.split, metavar="'key=value …'",
        help="overrides of one setting; repeat it for each",
    )  # fmt: skip
    study.add_argument("--at-a-time", type=positive, default=1, help="processes (default: 1)")
    study.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    study.set_defaults(verb=_study, parser=study)


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} should be whole numbers, such as 0,1,2") from None


def _study(given: argparse.Namespace) -> int:
    with own_stdout() as answer:
        from rl_research.config import out_of_sight
        from rl_research.studies import plan

        plan(given.name, given.overrides, given.seeds, given.setting)  # mistakes first
        hide_secrets(given)
        given.setting = [out_of_sight(words) for words in given.setting]
        with prefect_api() as api:
            from rl_research.cli.flow_calls import study

        words = (given.overrides, given.seeds, given.setting, given.at_a_time)
        found = study(given.name, *words, api)
        answer(json.dumps(found) + "\n" if given.json else _table(found))
    return 0


def _table(found: dict[str, Any]) -> str:
    from rl_research.report import study_markdown

    return study_markdown(found)
