"""Where runs are: folders of this machine, and URLs to which other machines push theirs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from rl_research.sync import server
from rl_research.sync.choosing import Policy, reason_not_to_try
from rl_research.sync.finding import LocalRun, find
from rl_research.sync.outcome import Outcome

_WAIT = 3.0  # seconds before a run's second try, doubled with each


@contextmanager
def opened(
    places: Sequence[str],
    options: Mapping[str, Any] | None = None,
    *,
    include_online: bool = False,
    to_send: bool = True,
) -> Iterator[list[LocalRun]]:
    """The runs in *places*; those at a URL are fetched, and their ledgers brought back at the end.

    What is *to_send* is held against other gateways meanwhile. Raises `ConfigError` for a place that is
    not there.
    """
    runs = find([place for place in places if "://" not in place], include_online=include_online)
    with ExitStack() as stack:
        for url in dict.fromkeys(place for place in places if "://" in place):
            from rl_research.sync import remote

            at_url = remote.staged(url, options, include_online=include_online, to_send=to_send)
            runs += stack.enter_context(at_url)
        yield runs


def deliver(
    runs: Sequence[LocalRun],
    policy: Policy,
    *,
    tries: int = 1,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Sync *runs*, up to *tries* times where waiting may help; *told* hears what is final of each.

    wandb is imported only if there is something to send.
    """
    account = server.configured()
    outcomes: dict[int, Outcome] = {}
    todo = []
    for number, run in enumerate(runs):
        if (outcome := reason_not_to_try(run, account, policy)) is None:
            todo.append(number)
        else:
            told(outcomes.setdefault(number, outcome))
    for left in reversed(range(tries if todo else 0)):
        chosen = [(number, runs[number]) for number in todo]
        todo = _one_round(chosen, replace(policy, patient=False), outcomes, told, left)
        if not todo:
            break
        time.sleep(_WAIT * 2 ** (tries - 1 - left) * random.uniform(0.5, 1.5))
    return [outcomes[number] for number in range(len(runs))]


def _one_round(
    todo: Sequence[tuple[int, LocalRun]],
    policy: Policy,
    outcomes: dict[int, Outcome],
    told: Callable[[Outcome], None],
    left: int,
) -> list[int]:
    """Sync each once; the numbers of those that are worth another of the *left* rounds."""
    from rl_research.sync.delivery import deliver as sync

    again = []
    for (number, _), outcome in zip(todo, sync([run for _, run in todo], policy), strict=True):
        outcomes[number] = outcome
        if outcome.is_later and left:
            again.append(number)
        else:
            told(outcome)
    return again
