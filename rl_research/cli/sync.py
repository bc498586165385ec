"""``rl-research sync``: bring offline runs to Weights & Biases."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from rl_research.cli.common import POSITIVE, as_json, own_stdout, split_storage, words_of

if TYPE_CHECKING:
    from rl_research.sync import LocalRun, Outcome, Policy

_LISTED = 10  # unchanged runs; more are counted
_EPILOG = """\
Exit codes: 0 everything has arrived (or nothing was there to send); 75 something is left that a later
sync delivers; 2 something is left that somebody has to see to, said with its remedy.
"""


@dataclass(frozen=True)
class _Wanted:
    """Options of one command."""

    dry_run: bool
    force: bool
    include_online: bool
    push: str | None
    tries: int
    watch: bool

    def policy(self, *, only_due: bool = False) -> Policy:
        """Return which runs are tried; where *only_due*, none before its next try is due."""
        from rl_research.sync import Policy

        return Policy(force=self.force, only_due=only_due)


@click.command(epilog=_EPILOG)
@words_of("[PATH|URL …] [storage.KEY=VALUE …]")
@as_json
@click.option("--dry-run", is_flag=True, help="Say what would be sent, ask nobody.")
@click.option("--force", is_flag=True, help="Send blocked and delivered runs, too.")
@click.option("--include-online", is_flag=True, help="Send what online runs could not send, too.")
@click.option("--push", metavar="URL", help="Bring the runs to URL instead, from where another machine syncs.")
@click.option("--tries", type=POSITIVE, default=3, show_default=True, help="Times a run is tried.")
@click.option("--watch", is_flag=True, help="Go on until stopped.")
@click.option("--every", type=POSITIVE, default=60, show_default=True, help="Seconds between two looks.")
def sync(overrides: tuple[str, ...], as_json: bool, every: int, **options: Any) -> int:
    """Bring offline runs to Weights & Biases, each row once.

    PATH is a folder of runs, a run or a W&B folder; without one it is ./runs.
    """
    wanted = _Wanted(**options)
    with own_stdout(as_json) as answer:
        if wanted.watch:
            return _watch(overrides, wanted, every, answer)
        from rl_research.sync import exit_code

        outcomes = _once(overrides, wanted, wanted.policy(), _say_nothing if as_json else answer)
        code = exit_code(outcomes)
        if as_json:
            answer.json(exit_code=code, runs=[asdict(outcome) for outcome in outcomes])
    return code


def _say_nothing(_text: str) -> None:
    """Stand in for the answer where it is one JSON object at the end."""


def _once(words: Sequence[str], wanted: _Wanted, policy: Policy, say: Callable[[str], None]) -> list[Outcome]:
    """Look at everything once; each line is said as soon as it is known."""
    from rl_research.sync import open_runs, sync_runs

    storage, where = split_storage(words)
    options = _store_options(storage) if storage else {}
    online, to_send = wanted.include_online, not wanted.dry_run
    with open_runs(where or ["runs"], options, include_online=online, to_send=to_send) as runs:
        if wanted.dry_run:
            return _would_send(runs, say, policy)
        with _progress(len(runs), wanted, say) as report:
            if wanted.push is not None:
                from rl_research.sync import push

                return push(runs, wanted.push, options, report)
            return sync_runs(runs, policy, tries=wanted.tries, report=report)


def _store_options(overrides: Sequence[str]) -> dict[str, Any]:
    from rl_research.config import load_storage  # with Hydra, which a look at local runs does not need

    return dict(load_storage(overrides).options)


def _would_send(runs: Sequence[LocalRun], say: Callable[[str], None], policy: Policy) -> list[Outcome]:
    from rl_research.sync import Verdict, reason_to_skip
    from rl_research.tracking import WandbApi

    account = WandbApi()
    outcomes = []
    for run in runs:
        if (outcome := reason_to_skip(run, account, policy)) is None:
            size = sum(run.sizes[name] for name in run.pending or run.sizes)
            reason = f"{len(run.pending or run.sizes)} segments, {size:,} bytes would be looked at."
            outcome = run.outcome(Verdict("waiting", reason))
        outcomes.append(outcome)
        say(outcome.line() + "\n")
    return outcomes


@contextmanager
def _progress(number: int, wanted: _Wanted, say: Callable[[str], None]) -> Iterator[Callable[[Outcome], None]]:
    """Say each outcome in a line, above a bar in a terminal; unchanged runs come last, many as a count."""
    from tqdm import tqdm

    unchanged: list[Outcome] = []
    with tqdm(total=number, unit="run", disable=not sys.stderr.isatty() or not number) as bar:

        def report(outcome: Outcome) -> None:
            bar.update()
            if outcome.state == "unchanged":
                unchanged.append(outcome)
            else:
                bar.clear()
                say(outcome.line() + "\n")

        yield report
    if wanted.watch:
        return
    if len(unchanged) > _LISTED:
        say(f"unchanged  {len(unchanged):,} runs, which had arrived before\n")
    else:
        say("".join(outcome.line() + "\n" for outcome in unchanged))
    if not number:
        say("nothing to sync: no offline run is there\n")


def _watch(words: Sequence[str], wanted: _Wanted, every: float, answer: Callable[[str], None]) -> int:
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
        _once(words, wanted, wanted.policy(only_due=bool(said)), say_once)
        stopped.wait(every)
    return 0
