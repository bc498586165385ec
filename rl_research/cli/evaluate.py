"""``rl-research evaluate``: score a checkpoint on held-out seeds."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rl_research.cli.common import hide_secrets, lookup, own_stdout, positive, prefect_api, takes_a_checkpoint
from rl_research.cli.terminal import score

if TYPE_CHECKING:
    from rl_research.cli.common import Verbs


def add(verbs: Verbs) -> None:
    """Add the verb to the command's *verbs*."""
    evaluate = verbs.add_parser("evaluate", help="score a checkpoint on held-out seeds", allow_abbrev=False)
    takes_a_checkpoint(evaluate)
    evaluate.add_argument("--episodes", type=positive, help="how many (default: as configured)")
    evaluate.set_defaults(verb=_evaluate, parser=evaluate)


def _evaluate(given: argparse.Namespace) -> int:
    with own_stdout() as answer:
        from rl_research.checkpoints import find
        from rl_research.storage import is_transient

        hide_secrets(given)
        reference = given.checkpoint
        try:  # a mistake is found before a flow run exists
            reference = find(reference, **lookup(given)).address
        except Exception as error:
            if not is_transient(error):
                raise
        with prefect_api() as api:
            from rl_research.cli.flow_calls import evaluate

        words = (given.episodes, given.overrides, given.trust_env, given.runs_dir)
        result = evaluate(reference, *words, api)
        answer(json.dumps(result) + "\n" if given.json else score(result) + "\n")
    return 0
