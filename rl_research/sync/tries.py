"""Runs opened wherever they are, and synced in as many tries as it takes."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from rl_research.sync.delivery import deliver_runs
from rl_research.sync.local_runs import LocalRun, Policy, find, reason_to_skip
from rl_research.sync.outcome import Outcome
from rl_research.tracking import WandbApi

_WAIT = 3.0  # seconds before a run's second try, doubled with each


@contextmanager
def open_runs(
    places: Sequence[str],
    options: Mapping[str, Any] | None = None,
    *,
    include_online: bool = False,
    to_send: bool = True,
) -> Iterator[list[LocalRun]]:
    """Yield the runs in *places*, which are folders of this machine and URLs to which others push runs.

    Runs at a URL are fetched; their ledgers are written back at the end. Where they are *to_send*, other
    gateways are kept away meanwhile. Raises `ConfigError` for a place that is not there.
    """
    runs = find([place for place in places if "://" not in place], include_online=include_online)
    with ExitStack() as stack:
        for url in dict.fromkeys(place for place in places if "://" in place):
            from rl_research.sync import gateway

            at_url = gateway.fetched_runs(url, options, include_online=include_online, to_send=to_send)
            runs += stack.enter_context(at_url)
        yield runs


def sync_runs(
    runs: Sequence[LocalRun],
    policy: Policy,
    *,
    tries: int = 1,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Sync *runs*, up to *tries* times where waiting may help; *report* is called with each final outcome.

    wandb is imported only if there is something to send.
    """
    account = WandbApi()
    outcomes: dict[int, Outcome] = {}
    for number, run in enumerate(runs):
        if (skipped := reason_to_skip(run, account, policy)) is not None:
            report(outcomes.setdefault(number, skipped))
    todo = [number for number in range(len(runs)) if number not in outcomes]
    for left in reversed(range(tries if todo else 0)):
        tried = deliver_runs([runs[number] for number in todo], replace(policy, only_due=False))
        outcomes.update(zip(todo, tried, strict=True))
        again = [number for number in todo if left and outcomes[number].is_later]
        for number in todo:
            if number not in again:
                report(outcomes[number])
        if not (todo := again):
            break
        time.sleep(_WAIT * 2 ** (tries - 1 - left) * random.uniform(0.5, 1.5))
    return [outcomes[number] for number in range(len(runs))]
