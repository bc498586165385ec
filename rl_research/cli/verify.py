"""``rl-research verify``: check a checkpoint's every byte, and its scores."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rl_research.cli.common import hide_secrets, lookup, own_stdout, takes_a_checkpoint

if TYPE_CHECKING:
    from rl_research.cli.common import Verbs


def add(verbs: Verbs) -> None:
    """Add the verb to the command's *verbs*."""
    verify = verbs.add_parser(
        "verify", help="check a checkpoint's every byte, and its scores", allow_abbrev=False
    )
    takes_a_checkpoint(verify)
    verify.add_argument("--evaluate", action="store_true", help="play the recorded episodes again")
    verify.set_defaults(verb=_verify, parser=verify)


def _verify(given: argparse.Namespace) -> int:
    with own_stdout() as answer:
        from rl_research.checkpoints import find
        from rl_research.training import verify

        hide_secrets(given)
        checkpoint = find(given.checkpoint, **lookup(given))
        found = verify(checkpoint, evaluate=given.evaluate, trust_env=given.trust_env)
        lines = "".join(f"{name:<18} {value}\n" for name, value in found.items())
        answer(json.dumps(found) + "\n" if given.json else lines)
    return 0
