"""A place is a folder of runs, one run, or the URL of either; each run in it is pruned alone."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from rl_research import checkpoints
from rl_research.checkpoints import FOLDER, MANIFEST, Retention, is_url
from rl_research.config import did_you_mean
from rl_research.errors import ConfigError, StorageError
from rl_research.pruning.budget import enforce_budget
from rl_research.pruning.orphans import find_orphans, remove_orphans
from rl_research.pruning.plan import Pruned, Removal, Rules
from rl_research.runs import LEASE, RECORD, holder_of, leased_folder, unfinished_files
from rl_research.storage import FILE as STORE_LEASE, Entry, Store, below, holder_in
from rl_research.system import expanded

_SILENCE = 3600.0  # seconds after which a lease in a store, renewed every few, is believed no more


def prune_place(place: str, rules: Rules) -> Pruned:
    """Prune every run in *place*: a folder of runs or a URL of stored ones, or a single run of either.

    Raises `ConfigError` for a folder that is not there, and connection failures as they come.
    """
    result = Pruned(place, rules)
    folders = []
    for address in _runs_in(place, rules):
        result.runs += 1
        try:
            if not is_url(address) and _is_run_folder(Path(address)):
                result.bytes_before += sum(e.size for e in Store(address).entries().values())
                folders.append(Path(address))
                _prune_folder(Path(address), result)
            else:
                _prune_stored(Store(below(address, FOLDER), rules.options), result)
        except (PermissionError, IsADirectoryError, StorageError) as error:
            result.refuse(address, error)
    enforce_budget(folders, result)
    return result


def _runs_in(place: str, rules: Rules) -> Iterator[str]:
    """Yield the paths or URLs of the runs in *place*."""
    if is_url(place) and Store(place, rules.options).is_local:
        place = Store(place, rules.options).root
    if not is_url(place):
        folder = expanded(place)
        if not folder.is_dir():
            known = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
            raise ConfigError(
                f"{place}: no folder of runs there.{did_you_mean(folder.name, known)} "
                "Give a folder such as runs, a run folder, or a URL such as s3://BUCKET/PREFIX."
            )
        place = str(folder)
    store, base = Store(place, rules.options), place.rstrip("/")
    names = store.folders()
    if FOLDER in names or _is_run_folder(Path(place)):
        yield base
        return
    for name in names:
        if _is_run_folder(Path(base, name)) or FOLDER in store.folders(name):
            yield below(base, name)


def _is_run_folder(folder: Path) -> bool:
    return (folder / RECORD).exists() or (folder / LEASE).exists()


def _prune_stored(store: Store, result: Pruned) -> None:
    entries = store.entries()
    result.bytes_before += sum(entry.size for entry in entries.values())
    if not _is_open(store, entries, result):
        result.carry_out(list(_removals(store, entries, result)))


def _prune_folder(folder: Path, result: Pruned) -> None:
    def removals() -> list[Removal]:
        store = Store(folder / FOLDER)
        return [*_removals(store, store.entries(), result), *_unfinished(folder, result.rules)]

    if (holder := holder_of(folder)) is not None:
        result.spare(str(folder), f"{holder} has this run open")
    elif (found := removals()) and result.rules.dry_run:
        result.carry_out(found)
    elif found:
        try:
            with leased_folder(folder):
                result.carry_out(removals())  # anew, for somebody may have been here
        except ConfigError as error:
            result.spare(str(folder), str(error))


def _removals(store: Store, entries: Mapping[str, Entry], result: Pruned) -> Iterator[Removal]:
    """Yield what is removed from a run's checkpoints; note how many files have no known age."""
    before, found = result.rules.before, checkpoints.list_checkpoints(store)
    retention = Retention.recorded_in(found[-1]) if found else None
    kept = retention.kept(found) if retention else {checkpoint.name for checkpoint in found}
    gone = []
    for checkpoint in found:
        manifest = entries.get(f"{checkpoint.name}/{MANIFEST}")
        old = manifest and manifest.modified is not None and manifest.modified < before
        if checkpoint.name not in kept and old:
            gone.append(checkpoint.name)
            size = sum(e.size for name, e in entries.items() if name.startswith(f"{checkpoint.name}/"))
            reason = "the run's retention does not keep it"
            yield Removal(checkpoint.address, size, reason, partial(checkpoints.remove, checkpoint))
    orphans = find_orphans(store, before, gone=gone)
    if orphans.timeless:
        result.spare(store.path(""), f"{orphans.timeless} files of no manifest: their times are not told")
    if names := sorted(orphans.old):
        path, size = store.path(f"{len(names)} files"), sum(entry.size for entry in orphans.old.values())
        remove = partial(remove_orphans, store, names, before)
        yield Removal(path, size, "no manifest names them", remove)


def _unfinished(folder: Path, rules: Rules) -> Iterator[Removal]:
    """Yield the temporary files of a killed process, besides those of its checkpoints."""
    for path in unfinished_files(folder):
        facts = path.stat()
        if path.parent.name != FOLDER and facts.st_mtime < rules.before:
            yield Removal(str(path), facts.st_size, "left half-written", path.unlink)


def _is_open(store: Store, entries: Mapping[str, Entry], result: Pruned) -> bool:
    """Return whether a process has the run in *store* open, and note that it is left alone then."""
    lease = entries.get(STORE_LEASE)
    alive = lease and (lease.modified is None or lease.modified > result.rules.now - _SILENCE)
    holder = holder_in(store) if alive else None
    if holder is not None:
        result.spare(store.path(""), f"{holder} has this run open")
    return holder is not None
