"""``rl-research prune``: remove what no run needs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from rl_research.cli.common import Answer, answering, in_runs_dir, split_storage, words_of

if TYPE_CHECKING:
    from rl_research.pruning import Pruned

_log = logging.getLogger(__name__)


@click.command()
@words_of("[RUNS_DIR|URL …] [storage.KEY=VALUE …]")
@in_runs_dir
@answering
@click.option("--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@click.option("--grace", default="24h", show_default=True, help="Age of an orphan that goes.")
@click.option("--budget", help="What the run folders of a place may take, such as 50GB.")
@click.option("--older-than", default="7d", show_default=True, help="Age of a finished run it may touch.")
@click.option("--local-checkpoints", is_flag=True, help="Let the budget remove checkpoints that lie nowhere else.")
def prune(
    overrides: tuple[str, ...],
    runs_dir: str,
    answer: Answer,
    dry_run: bool,
    grace: str,
    budget: str | None,
    older_than: str,
    local_checkpoints: bool,
) -> int:
    """Remove what no run needs: orphans, checkpoints not kept, finished runs over a budget."""
    from rl_research.config import load_storage
    from rl_research.pruning import Rules, prune_place
    from rl_research.system import parsed_size, parsed_time

    words, places = split_storage(overrides)
    storage = load_storage(words)
    rules = Rules(
        grace=parsed_time("--grace", grace),
        budget=None if budget is None else parsed_size("--budget", budget),
        older_than=parsed_time("--older-than", older_than),
        local_checkpoints=local_checkpoints,
        dry_run=dry_run,
        options=storage.options,
    )
    found = [prune_place(place, rules) for place in places or filter(None, (runs_dir, storage.url))]
    said = {
        "dry_run": dry_run,
        "bytes_removed": sum(one.bytes_removed for one in found),
        "places": [one.described() for one in found],
    }
    answer.result(said, lambda: _text(found, "would remove" if dry_run else "removed"))
    refused = [line for one in found for line in one.refused]
    for line in refused:
        _log.error("rl-research: %s", line)
    return 2 if refused else 0


def _text(found: Sequence[Pruned], verb: str) -> str:
    from rl_research.system import shown_size

    lines = []
    for one in found:
        lines += [f"{verb} {shown_size(r.size):>8}  {r.path}   ({r.reason})" for r in one.removed]
        lines += [f"left alone: {path}: {reason}" for path, reason in one.spared]
        runs = f"{one.runs} run{'' if one.runs == 1 else 's'}"
        freed, left = shown_size(one.bytes_removed), shown_size(one.bytes_left)
        lines.append(f"{one.place}: {verb} {freed}; {runs} {left}")
    return "\n".join(lines) + "\n"
