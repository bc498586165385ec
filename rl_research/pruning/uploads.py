"""Uploads that a killed process has left unfinished in a store: invisible, and paid for."""

import re
from collections.abc import Mapping
from functools import partial

from rl_research.checkpoints import FOLDER, REPLAY, STEP
from rl_research.errors import StorageError
from rl_research.pruning.plan import Pruned, Removal, Rules
from rl_research.storage import FILE as LEASE, Entry, Store, Unfinished, below, holder_in

_SILENCE = 3600.0  # seconds after which a lease in a store, renewed every few, is believed no more
_OURS = re.compile(rf"(?P<run>(?:[^/]+/)?{FOLDER})/(?:{STEP.pattern}|{REPLAY})/[^/]+")


def sweep_uploads(place: str, rules: Rules, result: Pruned) -> None:
    """Abort the unfinished uploads of runs at the URL *place* that are older than the grace period.

    By their last bytes, and not of a run that a process has open. A store that does not tell, or does
    not let go, is no failure: a line says which right is missing.
    """
    store = Store(place, rules.options)
    try:
        found = store.unfinished_uploads()
    except StorageError as error:
        result.spare(store.url, f"unfinished uploads there are not looked for: {error}")
        return
    by_run: dict[str, list[Unfinished]] = {}
    for upload in found:
        if (ours := _OURS.fullmatch(upload.name)) is not None:
            result.bytes_before += upload.size or 0
            if upload.modified < rules.before:
                by_run.setdefault(ours["run"], []).append(upload)
    for run, uploads in by_run.items():
        stored = Store(below(place, run), rules.options)
        try:
            holder = holder_of_stored(stored, stored.entries(), rules)
        except StorageError as error:
            result.refuse(stored.path(""), error)
            continue
        if holder is not None:
            result.spare(stored.path(""), f"{holder} has this run open")
            continue
        removals = [_removal(store, upload) for upload in uploads]
        result.carry_out(removals, rules, optional=True)


def holder_of_stored(store: Store, entries: Mapping[str, Entry], rules: Rules) -> str | None:
    """Who has the run open whose checkpoints, *entries*, are in *store*; None if nobody has."""
    lease = entries.get(LEASE)
    alive = lease and (lease.modified is None or lease.modified > rules.now - _SILENCE)
    return holder_in(store) if alive else None


def _removal(store: Store, upload: Unfinished) -> Removal:
    size = ", of unknown size" if upload.size is None else ""
    reason = f"an upload that was never finished{size}"
    return Removal(store.path(upload.name), upload.size or 0, reason, partial(store.abort, upload))
