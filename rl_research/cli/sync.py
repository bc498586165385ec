"""``rl-research sync``: bring offline runs to Weights & Biases."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rl_research.cli.common import POSITIVE, Answer, answering, split_storage, words_of

if TYPE_CHECKING:
    from rl_research.sync import LocalRun, Outcome, Policy

_LISTED = 10  # unchanged runs; more are counted
_EPILOG = """\
Exit codes: 0 everything has arrived (or nothing was there to send); 75 something is left that a later
sync delivers; 2 something is left that somebody has to see to, said with its remedy.
"""


@click.command(epilog=_EPILOG)
@words_of("[PATH|URL …] [storage.KEY=VALUE …]")
@answering
@click.option("--dry-run", is_flag=True, help="Say what would be sent, ask nobody.")
@click.option("--force", is_flag=True, help="Send blocked and delivered runs, too.")
@click.option("--include-online", is_flag=True, help="Send what online runs could not send, too.")
@click.option("--push", metavar="URL", help="Bring the runs to URL instead, from where another machine syncs.")
@click.option("--tries", type=POSITIVE, default=3, show_default=True, help="Times a run is tried.")
@click.option("--watch", is_flag=True, help="Go on until stopped.")
@click.option("--every", type=POSITIVE, default=60, show_default=True, help="Seconds between two looks.")
def sync(overrides: tuple[str, ...], answer: Answer, watch: bool, every: int, **how: Any) -> int:
    """Bring offline runs to Weights & Biases, each row once.

    PATH is a folder of runs, a run or a W&B folder; without one it is ./runs.
    """
    if watch:
        return _watch(overrides, every, answer, how)
    from rl_research.sync import exit_code

    say = (lambda _text: None) if answer.as_json else answer
    outcomes = _once(overrides, say, **how)
    if not how["dry_run"]:
        _say_unchanged(outcomes, say)
    code = exit_code(outcomes)
    answer.result({"exit_code": code, "runs": [asdict(outcome) for outcome in outcomes]}, lambda: "")
    return code


def _once(
    words: Sequence[str],
    say: Callable[[str], None],
    *,
    dry_run: bool,
    force: bool,
    include_online: bool,
    push: str | None,
    tries: int,
    only_due: bool = False,
) -> list[Outcome]:
    """Look at everything once; each line is said as soon as it is known."""
    from rl_research import sync

    storage, where = split_storage(words)
    options: Mapping[str, Any] = {}
    if storage:
        from rl_research.config import load_storage  # with Hydra, which a look at local runs does not need

        options = dict(load_storage(storage).options)
    policy = sync.Policy(force=force, only_due=only_due)
    with sync.open_runs(where or ["runs"], options, include_online=include_online, to_send=not dry_run) as runs:
        if dry_run:
            return [_would_send(run, policy, say) for run in runs]
        with _progress(len(runs), say) as report:
            if push is not None:
                return sync.push(runs, push, options, report)
            return sync.sync_runs(runs, policy, tries=tries, report=report)


def _would_send(run: LocalRun, policy: Policy, say: Callable[[str], None]) -> Outcome:
    from rl_research.sync import Verdict, reason_to_skip
    from rl_research.tracking import WandbApi

    if (outcome := reason_to_skip(run, WandbApi(), policy)) is None:
        segments = run.pending or list(run.sizes)
        size = sum(run.sizes[name] for name in segments)
        reason = f"{len(segments)} segments, {size:,} bytes would be looked at."
        outcome = run.outcome(Verdict("waiting", reason))
    say(outcome.line() + "\n")
    return outcome


@contextmanager
def _progress(number: int, say: Callable[[str], None]) -> Iterator[Callable[[Outcome], None]]:
    """Say each outcome in a line, above a bar in a terminal; what had arrived before is no news."""
    from tqdm import tqdm

    with tqdm(total=number, unit="run", disable=not number or None) as bar:

        def report(outcome: Outcome) -> None:
            bar.update()
            if outcome.state != "unchanged":
                bar.clear()
                say(outcome.line() + "\n")

        yield report


def _say_unchanged(outcomes: Sequence[Outcome], say: Callable[[str], None]) -> None:
    unchanged = [outcome.line() + "\n" for outcome in outcomes if outcome.state == "unchanged"]
    if len(unchanged) > _LISTED:
        say(f"unchanged  {len(unchanged):,} runs, which had arrived before\n")
    else:
        say("".join(unchanged))
    if not outcomes:
        say("nothing to sync: no offline run is there\n")


def _watch(words: Sequence[str], every: float, answer: Callable[[str], None], how: dict[str, Any]) -> int:
    """Look again and again until SIGINT or SIGTERM; what has been said is not repeated."""
    said: set[str] = set()

    def say_once(text: str) -> None:
        if text not in said:
            said.add(text)
            answer(text)

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.is_set():
        _once(words, say_once, only_due=bool(said), **how)
        stopped.wait(every)
    return 0
