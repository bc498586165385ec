"""``rl-research VERB [key=value …]``: the pipeline from a terminal.

Imports what a verb needs when it needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Sequence
from typing import Any

from rl_research.cli import checkpoints, doctor, evaluate, operate, prune, study, sync, train, verify
from rl_research.errors import RLResearchError

_INTERRUPTED = 130  # as a shell reports SIGINT

_DESCRIPTION = """\
Reinforcement-learning experiments that survive the night.

  rl-research train experiment=cartpole_ppo experiment.seed=1
  rl-research evaluate runs/RUN_ID --episodes 100
  rl-research verify runs/RUN_ID --evaluate
  rl-research checkpoints RUN_ID
  rl-research prune runs --budget 50GB
  rl-research sync
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for a mistake, 75 stopped, 130 cut off."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if unknown := [word for word in rest if word.startswith("-")]:
        given.parser.error(f"unrecognized option: {unknown[0]}")
    given.overrides += rest  # argparse takes positional words that stand after an option for unknown
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("rl_research").setLevel(logging.INFO)
    try:
        code: int = given.verb(given)
    except RLResearchError as error:
        sys.stderr.write(f"rl-research: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("rl-research: stopped\n")
        return _INTERRUPTED
    return code


class _Parser(argparse.ArgumentParser):
    """Argparse whose mistakes are one line, with a suggestion."""

    def error(self, message: str) -> Any:
        words = [action.option_strings for action in self._actions if action.option_strings]
        known = [option for options in words for option in options]
        wrong = next((word for word in message.split() if word.startswith("--")), "")
        hint = difflib.get_close_matches(wrong.split("=")[0].rstrip(":"), known, n=1) if wrong else []
        hint = [word for word in hint if word not in message]
        suggestion = f" Did you mean '{hint[0]}'?" if hint else f" See `{self.prog} --help`."
        sys.stderr.write(f"rl-research: {message}.{suggestion}\n")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rl-research",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB", parser_class=_Parser)
    for verb in (train, study, evaluate, verify, checkpoints, prune, sync, doctor, operate):
        verb.add(verbs)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib import metadata

        sys.stdout.write(f"rl-research {metadata.version('rl-research')}\n")
        parser.exit()
