"""A place is a folder of runs, one run, or the URL of either; each run in it is pruned alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rl_research.checkpoints import FOLDER, MANIFEST, Checkpoint, Retention, is_url, list_checkpoints, remove
from rl_research.config import did_you_mean
from rl_research.errors import ConfigError, StorageError
from rl_research.pruning.budget import enforce_budget
from rl_research.pruning.orphans import find_orphans, remove_orphans
from rl_research.pruning.plan import Pruned, Removal, Rules
from rl_research.pruning.uploads import holder_of_stored, sweep_uploads
from rl_research.runs import LEASE, RECORD, holder_of, leased_folder, unfinished_files
from rl_research.storage import Entry, Store, below


def prune_place(place: str, rules: Rules) -> Pruned:
    """Prune every run in *place*: a folder of runs or a URL of stored ones, or a single run of either.

    Raises `ConfigError` for a folder that is not there, and connection failures as they come.
    """
    result = Pruned(place)
    folders = []
    for address in _runs_in(place, rules):
        result.runs += 1
        try:
            if not is_url(address) and _is_run_folder(Path(address)):
                result.bytes_before += sum(e.size for e in Store(address).entries().values())
                folders.append(Path(address))
                _prune_folder(Path(address), rules, result)
            else:
                _prune_stored(Store(below(address, FOLDER), rules.options), rules, result)
        except (PermissionError, StorageError) as error:
            result.refuse(address, error)
    if is_url(place):
        sweep_uploads(place, rules, result)
    enforce_budget(folders, rules, result)
    return result


def _runs_in(place: str, rules: Rules) -> Iterator[str]:
    """Yield the paths or URLs of the runs in *place*."""
    if is_url(place) and Store(place, rules.options).is_local:
        place = Store(place, rules.options).root
    if not is_url(place):
        folder = Path(place).expanduser()
        if not folder.is_dir():
            known = [path.name for path in folder.parent.glob("*/")] if folder.parent.is_dir() else []
            raise ConfigError(
                f"{place}: no folder of runs there.{did_you_mean(folder.name, known)} "
                "Give a folder such as runs, a run folder, or a URL such as s3://BUCKET/PREFIX."
            )
        if _is_run_folder(folder):
            yield str(folder)
            return
        place = str(folder)
    store, base = Store(place, rules.options), place.rstrip("/")
    names = store.folders()
    if FOLDER in names:
        yield base
        return
    for name in names:
        if _is_run_folder(Path(base, name)) or FOLDER in store.folders(name):
            yield below(base, name)


def _is_run_folder(folder: Path) -> bool:
    return (folder / RECORD).exists() or (folder / LEASE).exists()


def _prune_stored(store: Store, rules: Rules, result: Pruned) -> None:
    entries = store.entries()
    result.bytes_before += sum(entry.size for entry in entries.values())
    if (holder := holder_of_stored(store, entries, rules)) is not None:
        result.spare(store.path(""), f"{holder} has this run open")
        return
    removals, timeless = _removals(store, entries, rules)
    if timeless:
        result.spare(store.path(""), f"{timeless} files of no manifest: their times are not told")
    result.carry_out(removals, rules)


def _prune_folder(folder: Path, rules: Rules, result: Pruned) -> None:
    def plan() -> list[Removal]:
        store = Store(folder / FOLDER)
        return [*_removals(store, store.entries(), rules)[0], *_unfinished(folder, rules)]

    if (holder := holder_of(folder)) is not None:
        result.spare(str(folder), f"{holder} has this run open")
    elif removals := plan():
        if rules.dry_run:
            result.carry_out(removals, rules)
            return
        try:
            with leased_folder(folder):
                result.carry_out(plan(), rules)  # anew, for somebody may have been here
        except ConfigError as error:
            result.spare(str(folder), str(error))


def _removals(store: Store, entries: Mapping[str, Entry], rules: Rules) -> tuple[list[Removal], int]:
    """Return what is removed from a run's checkpoints, and how many files have no known age."""
    unwanted = list(_not_kept(store, entries, rules))
    removals = [_of_checkpoint(checkpoint, entries) for checkpoint in unwanted]
    orphans = find_orphans(store, rules.before, gone=[c.name for c in unwanted])
    if orphans.old:
        names = sorted(orphans.old)
        removals.append(
            Removal(
                store.path(f"{len(names)} files"),
                sum(entry.size for entry in orphans.old.values()),
                "no manifest names them",
                lambda: remove_orphans(store, names, rules.before),
            )
        )
    return removals, orphans.timeless


def _not_kept(store: Store, entries: Mapping[str, Entry], rules: Rules) -> Iterator[Checkpoint]:
    """Yield the checkpoints that the run's own retention, as its newest one tells it, does not keep."""
    found = list_checkpoints(store)
    retention = Retention.recorded_in(found[-1]) if found else None
    if retention is None:
        return
    keep = retention.kept(found)
    for checkpoint in found:
        entry = entries.get(f"{checkpoint.name}/{MANIFEST}")
        old = entry and entry.modified is not None and entry.modified < rules.before
        if checkpoint.name not in keep and old:
            yield checkpoint


def _of_checkpoint(checkpoint: Checkpoint, entries: Mapping[str, Entry]) -> Removal:
    own = [entry.size for name, entry in entries.items() if name.startswith(f"{checkpoint.name}/")]
    return Removal(checkpoint.address, sum(own), "the run's retention does not keep it", lambda: remove(checkpoint))


def _unfinished(folder: Path, rules: Rules) -> Iterator[Removal]:
    """Yield the temporary files of a killed process, besides those of its checkpoints."""
    for path in unfinished_files(folder):
        facts = path.stat()
        if path.parent.name != FOLDER and facts.st_mtime < rules.before:
            yield Removal(str(path), facts.st_size, "left half-written", path.unlink)
