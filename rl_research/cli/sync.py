"""``rl-research sync``: bring offline runs to Weights & Biases."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rl_research.cli.common import is_about_storage, own_stdout, positive

if TYPE_CHECKING:
    from rl_research.cli.common import Verbs
    from rl_research.sync import LocalRun, Outcome, Policy

_RUNS = "runs"
_LISTED = 10  # unchanged runs; more are counted
_EPILOG = """\
exit codes: 0 everything has arrived (or nothing was there to send); 75 something is left that a later
            sync delivers; 2 something is left that somebody has to see to, said with its remedy
"""


def add(verbs: Verbs) -> None:
    """Add the verb to the command's *verbs*."""
    sync = verbs.add_parser(
        "sync",
        help="bring offline runs to Weights & Biases, each row once",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sync.add_argument(
        "overrides", nargs="*", metavar="PATH", help="runs folders, runs, W&B folders or URLs (default: runs)"
    )
    sync.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    sync.add_argument("--dry-run", action="store_true", help="say what would be sent, ask nobody")
    sync.add_argument("--force", action="store_true", help="also blocked and delivered runs")
    sync.add_argument("--include-online", action="store_true", help="also what online runs could not send")
    sync.add_argument(
        "--push", metavar="URL", help="bring them to URL instead, from where another machine syncs"
    )
    sync.add_argument("--tries", type=positive, default=3, help="times a run is tried (default: 3)")
    sync.add_argument("--watch", action="store_true", help="go on until stopped")
    sync.add_argument("--every", type=positive, default=60, help="with --watch: seconds between two looks")
    sync.set_defaults(verb=_sync, parser=sync)


def _sync(given: argparse.Namespace) -> int:
    with own_stdout() as answer:
        if given.watch:
            return _watch(given, answer)
        from rl_research.sync import exit_code

        outcomes = _once(given, answer, _policy(given))
        code = exit_code(outcomes)
        if given.json:
            found = [outcome.as_dict() for outcome in outcomes]
            answer(json.dumps({"exit_code": code, "runs": found}) + "\n")
    return code


def _policy(given: argparse.Namespace, *, patient: bool = False) -> Policy:
    from rl_research.sync import Policy

    return Policy(force=given.force, patient=patient)


def _once(given: argparse.Namespace, answer: Callable[[str], None], policy: Policy) -> list[Outcome]:
    """One look at everything; each line is said as soon as it is known."""
    from rl_research.sync import places

    words, options = _places(given.overrides)
    online, to_send = given.include_online, not given.dry_run
    with places.opened(words, options, include_online=online, to_send=to_send) as runs:
        if given.dry_run:
            return _would_send(runs, answer, policy)
        with _progress(len(runs), given, answer) as told:
            if given.push is not None:
                from rl_research.sync import push

                return push(runs, given.push, options, told)
            return places.deliver(runs, policy, tries=given.tries, told=told)


def _places(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The paths and URLs among *words*, and the options of their file system."""
    settings = [word for word in words if is_about_storage(word)]
    where = [word for word in words if word not in settings]
    if not settings:
        return where or [_RUNS], {}
    from rl_research.checkpoints import storage_among

    return where or [_RUNS], dict(storage_among(settings).options)


def _would_send(runs: Sequence[LocalRun], answer: Callable[[str], None], policy: Policy) -> list[Outcome]:
    from rl_research.sync import outcome_of, reason_not_to_try, server

    account = server.account()
    outcomes = []
    for run in runs:
        if (outcome := reason_not_to_try(run, account, policy)) is None:
            size = sum(run.sizes[name] for name in run.pending or run.sizes)
            reason = f"{len(run.pending or run.sizes)} segments, {size:,} bytes would be looked at."
            outcome = outcome_of(run.ledger, run.place, "waiting", reason=reason, remedy="")
        outcomes.append(outcome)
        answer(outcome.line() + "\n")
    return outcomes


@contextmanager
def _progress(
    number: int, given: argparse.Namespace, answer: Callable[[str], None]
) -> Iterator[Callable[[Outcome], None]]:
    """Say each outcome in a line, above a bar where a person looks; a word for all that is as it was."""
    from tqdm import tqdm

    unchanged: list[Outcome] = []
    with tqdm(total=number, unit="run", disable=not sys.stderr.isatty() or not number) as bar:

        def told(outcome: Outcome) -> None:
            bar.update()
            if outcome.state == "unchanged":
                unchanged.append(outcome)
            elif not given.json:
                bar.clear()
                answer(outcome.line() + "\n")

        yield told
    if given.json or given.watch:
        return
    if len(unchanged) > _LISTED:
        answer(f"unchanged  {len(unchanged):,} runs, which had arrived before\n")
    else:
        answer("".join(outcome.line() + "\n" for outcome in unchanged))
    if not number:
        answer("nothing to sync: no offline run is there\n")


def _watch(given: argparse.Namespace, answer: Callable[[str], None]) -> int:
    """Look again and again until SIGINT or SIGTERM; what is said once is not repeated."""
    said: set[str] = set()

    def once(text: str) -> None:
        if text not in said:
            said.add(text)
            answer(text)

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.is_set():
        _once(given, once, _policy(given, patient=bool(said)))
        stopped.wait(given.every)
    return 0
