"""``rl-research prune``: remove what no run needs."""

from __future__ import annotations

import argparse
import json
import logging
from typing import TYPE_CHECKING, Any

from rl_research.cli.common import is_about_storage, lookup, own_stdout, takes_places

if TYPE_CHECKING:
    from rl_research.cli.common import Verbs
    from rl_research.pruning import Pruned

_log = logging.getLogger(__name__)


def add(verbs: Verbs) -> None:
    """Add the verb to the command's *verbs*."""
    prune = verbs.add_parser(
        "prune",
        help="remove what no run needs: orphans, checkpoints not kept, finished runs over a budget",
        usage="rl-research prune [RUNS_DIR|URL …] [options] [storage.options.KEY=VALUE …]",
        allow_abbrev=False,
    )
    takes_places(prune)
    prune.add_argument("--dry-run", action="store_true", help="say what would go, remove nothing")
    prune.add_argument("--grace", default="24h", help="age of an orphan that goes (24h)")
    prune.add_argument("--budget", help="what the run folders of a place may take, such as 50GB")
    prune.add_argument("--older-than", default="7d", help="age of a finished run it may touch (7d)")
    prune.add_argument(
        "--local-checkpoints", action="store_true",
        help="let the budget remove checkpoints that lie nowhere else",
    )  # fmt: skip
    prune.set_defaults(verb=_prune, parser=prune)


def _prune(given: argparse.Namespace) -> int:
    with own_stdout() as answer:
        from rl_research.pruning import Rules, prune_place
        from rl_research.system import parsed_size, parsed_time

        places = [word for word in given.overrides if not is_about_storage(word)]
        given.overrides = [word for word in given.overrides if is_about_storage(word)]
        look = lookup(given)
        places = places or [place for place in (given.runs_dir, look["url"]) if place]
        rules = Rules(
            grace=parsed_time("--grace", given.grace),
            budget=None if given.budget is None else parsed_size("--budget", given.budget),
            older_than=parsed_time("--older-than", given.older_than),
            local_checkpoints=given.local_checkpoints,
            dry_run=given.dry_run,
            options=look["options"],
        )
        found = [prune_place(place, rules) for place in places]
        answer(json.dumps(_described(found, given)) + "\n" if given.json else _text(found, given))
    for line in (line for one in found for line in one.refused):
        _log.error("rl-research: %s", line)
    return 2 if any(one.refused for one in found) else 0


def _described(found: list[Pruned], given: argparse.Namespace) -> dict[str, Any]:
    total = sum(one.bytes_removed for one in found)
    places = [one.described() for one in found]
    return {"dry_run": given.dry_run, "bytes_removed": total, "places": places}


def _text(found: list[Pruned], given: argparse.Namespace) -> str:
    from rl_research.system import shown_size

    verb = "would remove" if given.dry_run else "removed"
    lines = []
    for one in found:
        lines += [f"{verb} {shown_size(r.size):>8}  {r.path}   ({r.reason})" for r in one.removed]
        lines += [f"left alone: {path}: {reason}" for path, reason in one.spared]
        runs = f"{one.runs} run{'' if one.runs == 1 else 's'}"
        freed, left = shown_size(one.bytes_removed), shown_size(one.bytes_left)
        lines.append(f"{one.place}: {verb} {freed}; {runs} {left}")
    return "\n".join(lines) + "\n"
