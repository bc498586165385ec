"""A disk budget for run folders: finished runs give up what lies elsewhere, the longest finished first.

A run gives up its local checkpoints first, then its films, its best model and its W&B logs. Its record
stays: the page, the scores, the rows, the configuration, ``run.json``; started again, it is still
recognised as finished. Nothing goes that W&B or ``storage.url`` has not got.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from rl_research import checkpoints
from rl_research.checkpoints import FOLDER, MANIFEST
from rl_research.errors import CheckpointError, ConfigError, RLResearchError
from rl_research.pruning.plan import Pruned, Removal, Rules
from rl_research.runs import RECORD, PruneRecord, RunRecord, leased_folder, read_record
from rl_research.storage import Store, is_transient
from rl_research.sync import is_verified
from rl_research.system import shown_size, shown_time

_PARTS = ((FOLDER,), ("videos", "best_model", "wandb"))  # folders in the order in which they go
_REASON = "the budget: the run is finished, and this lies elsewhere, too"


@dataclass(frozen=True)
class _FinishedRun:
    folder: Path
    record: RunRecord
    finished_at: float  # seconds since 1970


def enforce_budget(folders: Sequence[Path], result: Pruned) -> None:
    """Remove from the run folders in *folders* until the place keeps to its budget, or nothing may go.

    Where the budget is not kept, each run that keeps something is spared with the reason.
    """
    budget = result.rules.budget
    if not folders or budget is None or result.bytes_left <= budget:
        return
    runs = sorted(filter(None, map(_finished_run, folders)), key=lambda run: run.finished_at)
    reasons: dict[Path, str | None] = {}
    for part in _PARTS:
        for run in runs:
            if result.bytes_left > budget and not reasons.get(run.folder):
                reasons[run.folder] = _reason_to_keep(run, result.rules) or _remove(run, part, result)
    if result.bytes_left > budget:
        over = shown_size(result.bytes_left - budget)
        result.spare(result.place, f"{over} over the budget: nothing else may go")
        for folder, reason in reasons.items():
            if reason:
                result.spare(str(folder), reason)


def _finished_run(folder: Path) -> _FinishedRun | None:
    record = read_record(folder)
    if record is None or not record.is_finished:
        return None
    try:
        finished_at = datetime.fromisoformat(str(record.finished_at)).timestamp()
    except ValueError:
        finished_at = (folder / RECORD).stat().st_mtime
    return _FinishedRun(folder, record, finished_at)


def _reason_to_keep(run: _FinishedRun, rules: Rules) -> str | None:
    """Return why nothing of *run* may be removed, None if something may."""
    age = rules.now - run.finished_at
    if age < rules.older_than:
        return f"finished {shown_time(age)} ago, less than {shown_time(rules.older_than)}"
    if any(run.folder.glob("wandb/*run-*/*.wandb")) and not is_verified(run.folder):
        return "its W&B logs are not known to be delivered"
    return None if rules.local_checkpoints else _reason_not_stored(run.folder, rules)


def _reason_not_stored(folder: Path, rules: Rules) -> str | None:
    """Return why the checkpoints in *folder* are not all in its ``storage.url``, too; None if they are."""
    local = checkpoints.local_checkpoints(folder)
    url = checkpoints.storage_url_of(folder)
    if not local:
        return None
    if url is None:
        return "its checkpoints lie nowhere else (no storage.url)"
    try:
        store = checkpoints.remote_store(url, rules.options, folder.name)
        sizes = {name: entry.size for name, entry in store.entries().items()}
        for checkpoint in local:
            stored = checkpoints.open_checkpoint(store, checkpoint.name)
            stored.check_sizes(sizes)
            if stored.paths() != checkpoint.paths():
                return f"{store.path(checkpoint.name)} is not the same checkpoint"
    except CheckpointError as error:
        return f"not complete in its storage: {error}"
    except (RLResearchError, OSError) as error:
        kind = "cannot be reached" if is_transient(error) else "refuses"
        return f"its storage {kind}: {error}"
    return None


def _remove(run: _FinishedRun, part: Sequence[str], result: Pruned) -> str | None:
    """Remove the folders *part* of *run*; return why not, if a process has the run open."""
    if result.rules.dry_run:
        result.carry_out(_removals(run, part, result.removed))
        return None
    try:
        with leased_folder(run.folder):
            if removals := _removals(run, part):
                _record(run, sum(removal.size for removal in removals), result.rules)
            result.carry_out(removals)
    except PermissionError as error:
        result.refuse(str(run.folder), error)
    except ConfigError as error:
        return str(error)
    return None


def _record(run: _FinishedRun, size: int, rules: Rules) -> None:
    """Record that something is missing because it was pruned."""
    now = datetime.fromtimestamp(rules.now, timezone.utc).isoformat(timespec="seconds")
    before = 0 if run.record.pruned is None else run.record.pruned.bytes
    run.record.pruned = PruneRecord(at=now, bytes=before + size)
    run.record.write(run.folder)


def _removals(run: _FinishedRun, part: Sequence[str], counted: Sequence[Removal] = ()) -> list[Removal]:
    """Return the folders *part* of *run*, without the bytes that a dry run has *counted* in them already."""
    found = []
    for folder in filter(Path.is_dir, (run.folder / name for name in part)):
        own = sum(entry.size for entry in Store(folder).entries().values())
        own -= sum(r.size for r in counted if Path(r.path).is_relative_to(folder.absolute()))
        found.append(Removal(str(folder), own, _REASON, partial(_remove_folder, folder)))
    return found


def _remove_folder(folder: Path) -> None:
    """Remove *folder*; a checkpoint in it first of all stops being one."""
    for checkpoint in checkpoints.list_checkpoints(Store(folder)):
        checkpoint.store.remove(f"{checkpoint.name}/{MANIFEST}")
    shutil.rmtree(folder)
