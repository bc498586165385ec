"""Runs that other machines have pushed to a URL: fetched, synced from here, their ledgers written back.

A machine that does so is a gateway. One at a time has the lease of a W&B folder; see `gateway_lease`.
"""

import json
import logging
import os
import posixpath
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rl_research.errors import ConfigError, StorageError
from rl_research.storage import Store, below, is_transient
from rl_research.sync import gateway_lease, ledger as ledgers
from rl_research.sync.gateway_lease import RunLeases
from rl_research.sync.ledger import Ledger, run_id_of
from rl_research.sync.local_runs import LocalRun, absent_run, find, is_segment
from rl_research.sync.outcome import Verdict
from rl_research.sync.temporary import temporary_folder
from rl_research.sync.threaded_store import ThreadedStore, verdict_of, with_retries
from rl_research.system import without_password

_log = logging.getLogger(__name__)

_DEPTH = 4  # folders below the URL
#: Of a run's folder: W&B has references to these, or copies of its own.
NOT_FETCHED = ("checkpoints", "videos", "best_model")


@dataclass(frozen=True, order=True)
class _RemoteRun:
    """A folder at the URL that holds the W&B folder *wandb*, or is it."""

    name: str
    wandb: str

    @property
    def lease(self) -> str:
        return posixpath.join(self.wandb, gateway_lease.FILE)


@dataclass
class _Fetched:
    """Runs of a URL that have been fetched into the local *folder*, and why others have not."""

    stores: ThreadedStore
    hold: RunLeases
    folder: Path
    absent: dict[_RemoteRun, Verdict] = field(default_factory=dict)

    def drop_others(self, homes: Iterable[_RemoteRun]) -> None:
        """Drop what another gateway syncs, or may sync."""
        for home in homes:
            why = self.hold.unsure.get(home.lease)
            if holder := self.hold.others.get(home.lease):
                why = f"{holder} is syncing it"
            if why:
                self.absent[home] = Verdict("busy", f"{why}.")
                shutil.rmtree(self.folder / home.name, ignore_errors=True)

    def is_lost(self, name: str) -> bool:
        """Return whether *name* belongs to a run that another gateway has taken over meanwhile."""
        lost = (posixpath.dirname(lease) for lease in list(self.hold.others))
        return any(not folder or name.startswith(f"{folder}/") for folder in lost)

    def addressed(self, run: LocalRun, url: str) -> LocalRun:
        """Return *run*, which has been fetched, with its address below *url*."""
        name = run.home.relative_to(self.folder).as_posix()
        address = below(url, "" if name == "." else name)
        return replace(run, address=address, claim=partial(self._claim, run.folder))

    def _claim(self, folder: Path, ledger: Ledger) -> Verdict | None:
        """Write *ledger* at the URL for the run in *folder* if its lease is still ours; return why not."""
        names = (folder / gateway_lease.FILE, ledgers.path_in(folder, ledger.run_id))
        lease, kept = (path.relative_to(self.folder).as_posix() for path in names)
        try:
            if self.stores.each(self.hold.still_has, [lease]) == [False]:
                return Verdict("busy", f"{self.hold.others[lease]} is syncing it.")
            self.stores.each(lambda store, name: store.write(name, ledgers.encoded(ledger)), [kept])
        except Exception as error:  # noqa: BLE001  # `verdict_of` raises what is no failure of the store
            return verdict_of(error)
        return None

    def absent_runs(self, url: str) -> list[LocalRun]:
        """Return the runs that have not been fetched from *url*."""
        return [
            absent_run(address := below(url, home.name), posixpath.basename(address), why)
            for home, why in sorted(self.absent.items())
        ]


@contextmanager
def fetched_runs(
    url: str, options: Mapping[str, Any] | None = None, *, include_online: bool = False, to_send: bool = True
) -> Iterator[list[LocalRun]]:
    """Yield the runs at *url* that may have something to deliver, in a local folder.

    At the end the ledgers and records that have changed are written beside the runs. A run that cannot be
    fetched is among them with the reason, and so is a place that cannot be listed. If they are *to_send*,
    their leases are held. Raises `ConfigError` if nothing is there.
    """
    shown = without_password(url)
    with ExitStack() as stack:
        try:
            stage = _fetched(url, options, stack, to_send=to_send)
        except Exception as error:  # noqa: BLE001  # `verdict_of` raises what is no failure of the store
            yield [absent_run(shown, shown, verdict_of(error))]
            return
        here = [stage.folder] if stage.folder.exists() else []
        found = find(here, include_online=include_online)
        before = _written_files(stage.folder)
        try:
            yield [*(stage.addressed(run, shown) for run in found), *stage.absent_runs(shown)]
        finally:
            _write_back(stage, before)


def _fetched(url: str, options: Mapping[str, Any] | None, stack: ExitStack, *, to_send: bool) -> _Fetched:
    """Fetch what may have something to deliver; *stack* closes what is needed until the runs are synced."""
    stores = stack.enter_context(ThreadedStore(url, options))
    homes = _runs_at(stores)
    leases = [home.lease for home in homes if to_send]
    hold = stack.enter_context(gateway_lease.leased_runs(stores, leases))
    stage = _Fetched(stores, hold, stack.enter_context(temporary_folder()) / _folder_for(url))
    stage.drop_others(homes)
    chosen = [home for home in homes if home not in stage.absent]
    failures = stores.each(lambda store, home: _fetch_run(store, home, stage.folder), chosen)
    stage.absent |= {home: why for home, why in zip(chosen, failures, strict=True) if why}
    hold.confirm()
    stage.drop_others(homes)
    return stage


def _folder_for(url: str) -> str:
    """Return the local name of what is at *url*; a run's folder keeps its name, which its segments know."""
    name = posixpath.basename(url.rstrip("/"))
    return name if name not in ("", "wandb") else "fetched"


def _runs_at(stores: ThreadedStore) -> list[_RemoteRun]:
    """Return the folders at or below the URL that hold W&B folders with something to deliver."""
    files, top = with_retries(lambda: stores.mine().content())
    if any(map(is_segment, top)) or "wandb" in top:
        found = [with_retries(lambda: _runs_below(stores.mine(), "", 1))]
    else:
        found = stores.each(lambda store, name: _runs_below(store, name, _DEPTH), top)
    homes = sorted({home for some in found for home in some})
    if not homes and any(name.endswith(".wandb") for name in files):
        raise ConfigError(f"{stores.url}: a segment by itself. Name the folder of its run.")
    if not homes and not top:
        raise ConfigError(f"{stores.url}: nothing there. Name the folder that runs are pushed to.")
    return homes


def _runs_below(store: Store, name: str, depth: int) -> list[_RemoteRun]:
    files, below_it = store.content(name)
    if any(map(is_segment, below_it)):
        return [_RemoteRun(name, name)] if _has_news(store, name, files, below_it) else []
    if "wandb" in below_it:
        wandb = posixpath.join(name, "wandb")
        return [_RemoteRun(name, wandb)] if _has_news(store, wandb, *store.content(wandb)) else []
    if depth == 0:
        return []
    return [
        home
        for folder in below_it
        if folder not in NOT_FETCHED
        for home in _runs_below(store, posixpath.join(name, folder), depth - 1)
    ]


def _has_news(store: Store, folder: str, files: Iterable[str], below_it: Iterable[str]) -> bool:
    """Return whether a segment in the W&B folder *folder* is not as a ledger there knows it."""
    known: dict[str, int] = {}
    for name in files:
        if run_id_of(name):
            known |= _delivered(store.read(posixpath.join(folder, name)))
    for segment in filter(is_segment, below_it):
        sizes = store.sizes(posixpath.join(folder, segment)).items()
        if any(known.get(segment) != size for name, size in sizes if name.endswith(".wandb")):
            return True
    return False


def _delivered(content: bytes) -> dict[str, int]:
    try:
        segments = json.loads(content)["segments"]
        return {name: part["size"] for name, part in segments.items() if part["delivered"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # a ledger that cannot be read: its run is looked at again


def _fetch_run(store: Store, home: _RemoteRun, stage: Path) -> Verdict | None:
    """Fetch all of *home* into *stage*, or nothing and return why."""
    try:
        _fetch(store, home.name, stage / home.name, leave_out=NOT_FETCHED)
    except Exception as error:  # noqa: BLE001  # `verdict_of` raises what is no failure of the store
        shutil.rmtree(stage / home.name)
        return verdict_of(error)
    return None


def _fetch(store: Store, name: str, target: Path, leave_out: Container[str] = ()) -> None:
    target.mkdir(parents=True, exist_ok=True)
    files, folders = with_retries(lambda: store.content(name))
    for base, entry in files.items():
        path, here = posixpath.join(name, base), target / base
        with_retries(lambda path=path, here=here: store.get(path, here))  # type: ignore[misc]  # mypy knows no defaults there
        if entry.modified is not None:  # by which a log that is still written is known
            os.utime(here, (entry.modified, entry.modified))
    for folder in folders:
        if folder not in leave_out:
            _fetch(store, posixpath.join(name, folder), target / folder)


def _written_files(stage: Path) -> dict[Path, bytes]:
    """Return the files that a sync writes: ledgers, and the records of runs."""
    return {path: path.read_bytes() for pattern in ("sync-*.json", "run.json") for path in stage.rglob(pattern)}


def _write_back(stage: _Fetched, before: Mapping[Path, bytes]) -> None:
    """Write the files that have changed; one that fails costs a question to the server next time."""
    store = stage.stores.mine()
    for path, content in _written_files(stage.folder).items():
        name = path.relative_to(stage.folder).as_posix()
        if before.get(path) == content or stage.is_lost(name):
            continue
        try:
            with_retries(lambda name=name, content=content: store.write(name, content))  # type: ignore[misc]
        except (OSError, StorageError) as error:
            _log.warning(
                "%s was not written (%s)%s; the next sync asks the server again",
                store.address(name), error, " for now" if is_transient(error) else "",
            )  # fmt: skip
