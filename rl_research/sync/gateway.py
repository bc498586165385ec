"""Runs that other machines have pushed to a URL: fetched, synced from here, their ledgers written back.

A machine that does so is a gateway. One at a time has the lease of a W&B folder.
"""

import logging
import os
import posixpath
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rl_research.errors import ConfigError, StorageError
from rl_research.storage import Lease, Store, below, is_transient
from rl_research.sync import ledger as ledgers
from rl_research.sync.ledger import Ledger, run_id_of
from rl_research.sync.local_runs import LocalRun, absent_run, find, is_segment
from rl_research.sync.outcome import Verdict
from rl_research.sync.temporary import temporary_folder
from rl_research.sync.threaded_store import ThreadedStore, verdict_of
from rl_research.system import without_password

_log = logging.getLogger(__name__)

LEASE = ".sync-lease.json"
_RACE_WINDOW = 5.0  # seconds in which a gateway that has found a lease free has written its own
_DEPTH = 7  # levels of folders that are looked into, the URL's own and W&B's among them
#: Of a run's folder: W&B has references to these, or copies of its own.
NOT_FETCHED = ("checkpoints", "videos", "best_model")


@dataclass(frozen=True, order=True)
class _RemoteRun:
    """Run whose segments are in the folder *wandb* below the URL."""

    wandb: str

    @property
    def name(self) -> str:
        """Folder that holds the run, and everything that is copied with it."""
        return posixpath.dirname(self.wandb) if posixpath.basename(self.wandb) == "wandb" else self.wandb

    @property
    def lease(self) -> str:
        """Name of its lease."""
        return posixpath.join(self.wandb, LEASE)


@dataclass
class _Fetched:
    """*runs* of a URL that have been fetched into the local *folder*, and why others have not."""

    stores: ThreadedStore
    lease: Lease
    folder: Path
    runs: list[_RemoteRun]
    absent: dict[_RemoteRun, Verdict] = field(default_factory=dict)

    def fetch(self) -> None:
        """Fetch the runs whose lease is ours."""
        self._drop_busy()
        failures = self.stores.each(lambda store, run: _fetch_run(store, run, self.folder), self.runs)
        self._drop({run: why for run, why in zip(self.runs, failures, strict=True) if why})
        self.lease.confirm()
        self._drop_busy()

    def _drop_busy(self) -> None:
        """Drop what another gateway syncs, or may sync."""
        reasons = self.lease.unsure | {name: f"{who} is syncing it" for name, who in self.lease.others.items()}
        self._drop({run: Verdict("busy", f"{reasons[run.lease]}.") for run in self.runs if run.lease in reasons})

    def _drop(self, reasons: Mapping[_RemoteRun, Verdict]) -> None:
        self.absent |= reasons
        self.runs = [run for run in self.runs if run not in reasons]
        for run in reasons:
            shutil.rmtree(self.folder / run.name, ignore_errors=True)

    def local_runs(self, url: str, *, include_online: bool) -> Iterator[LocalRun]:
        """Yield the runs with their addresses below *url*; those that have not been fetched say why."""
        for run in find([self.folder] if self.folder.exists() else [], include_online=include_online):
            name = run.home.relative_to(self.folder).as_posix()
            yield replace(run, address=below(url, "" if name == "." else name), claim=self._claim_for(run.folder))
        for absent, why in sorted(self.absent.items()):
            address = below(url, absent.name)
            yield absent_run(address, posixpath.basename(address), why)

    def _claim_for(self, folder: Path) -> Callable[[Ledger], Verdict | None]:
        def claim(ledger: Ledger) -> Verdict | None:
            """Write *ledger* at the URL if the lease is still ours; return why not."""
            names = (folder / LEASE, ledgers.path_in(folder, ledger.run_id))
            lease, kept = (path.relative_to(self.folder).as_posix() for path in names)
            try:
                if not self.lease.has(lease):
                    return Verdict("busy", f"{self.lease.others.get(lease, 'another process')} is syncing it.")
                self.stores.mine().write(kept, ledgers.encoded(ledger))
            except Exception as error:  # noqa: BLE001  # `verdict_of` raises what is no failure of the store
                return verdict_of(error)
            return None

        return claim

    def written_files(self) -> dict[Path, bytes]:
        """Return the files that a sync writes, of the runs that are still ours: ledgers, and records of runs."""
        return {
            path: path.read_bytes()
            for run in self.runs
            if run.lease not in self.lease.others
            for pattern in ("sync-*.json", "run.json")
            for path in (self.folder / run.name).rglob(pattern)
        }

    def write_back(self, before: Mapping[Path, bytes]) -> None:
        """Write the files that have changed; one that fails costs a question to the server next time."""
        store = self.stores.mine()
        for path, content in self.written_files().items():
            if before.get(path) == content:
                continue
            name = path.relative_to(self.folder).as_posix()
            try:
                store.write(name, content)
            except (OSError, StorageError) as error:
                later = " for now" if is_transient(error) else ""
                _log.warning(
                    "%s was not written (%s)%s; the next sync asks the server again", store.address(name), error, later
                )


@contextmanager
def fetched_runs(
    url: str, options: Mapping[str, Any] | None = None, *, include_online: bool = False, to_send: bool = True
) -> Iterator[list[LocalRun]]:
    """Yield the runs at *url* that may have something to deliver, in a local folder.

    At the end the ledgers and records that have changed are written beside the runs. A run that cannot be
    fetched is among them with the reason, and so is a place that cannot be listed. If they are *to_send*,
    this process has their leases. Raises `ConfigError` if nothing is there.
    """
    shown = without_password(url)
    with ExitStack() as stack:
        try:
            stores = stack.enter_context(ThreadedStore(url, options))
            runs = _runs_at(stores)
            names = [run.lease for run in runs if to_send]
            leases = Lease(stores.mine, names, race_window=_RACE_WINDOW, removed_at_end=True)
            lease = stack.enter_context(leases.held())
            fetched = _Fetched(stores, lease, stack.enter_context(temporary_folder()) / "runs", runs)
            fetched.fetch()
        except Exception as error:  # noqa: BLE001  # `verdict_of` raises what is no failure of the store
            yield [absent_run(shown, shown, verdict_of(error))]
            return
        before = fetched.written_files()
        try:
            yield list(fetched.local_runs(shown, include_online=include_online))
        finally:
            fetched.write_back(before)


def _runs_at(stores: ThreadedStore) -> list[_RemoteRun]:
    """Return the runs at or below the URL that have something to deliver; folders are listed level by level."""
    found, level = {}, [""]
    for _ in range(_DEPTH):
        listed = dict(zip(level, stores.each(Store.content, level), strict=True))
        if level == [""]:
            _refuse_a_mistaken_url(stores.url, *listed[""])
        level = []
        for name, (files, folders) in listed.items():
            if any(map(is_segment, folders)):
                found[_RemoteRun(name)] = (files, folders)
            elif "wandb" in folders:
                level.append(posixpath.join(name, "wandb"))
            else:
                level += [posixpath.join(name, folder) for folder in folders if folder not in NOT_FETCHED]
    news = stores.each(lambda store, run: _has_news(store, run.wandb, *found[run]), found)
    return sorted(run for run, has_news in zip(found, news, strict=True) if has_news)


def _refuse_a_mistaken_url(url: str, files: Iterable[str], folders: list[str]) -> None:
    if any(name.endswith(".wandb") for name in files):
        raise ConfigError(f"{url}: a segment by itself. Name the folder of its run.")
    if not folders:
        raise ConfigError(f"{url}: nothing there. Name the folder that runs are pushed to.")


def _has_news(store: Store, folder: str, files: Iterable[str], folders: Iterable[str]) -> bool:
    """Return whether a segment in the W&B folder *folder* is not as a ledger there knows it."""
    known: dict[str, int] = {}
    for name in filter(run_id_of, files):
        known |= ledgers.delivered_sizes(store.read(posixpath.join(folder, name)))
    for segment in filter(is_segment, folders):
        sizes = store.sizes(posixpath.join(folder, segment)).items()
        if any(known.get(segment) != size for name, size in sizes if name.endswith(".wandb")):
            return True
    return False


def _fetch_run(store: Store, run: _RemoteRun, folder: Path) -> Verdict | None:
    """Fetch the files of *run* into *folder*; return why that has failed."""
    try:
        entries = store.entries(run.name, leave_out=NOT_FETCHED)
        for name, entry in entries.items():
            store.get(name, folder / name)
            if entry.modified is not None:  # by which a log that is still written is known
                os.utime(folder / name, (entry.modified, entry.modified))
    except Exception as error:  # noqa: BLE001  # `verdict_of` raises what is no failure of the store
        return verdict_of(error)
    return None
