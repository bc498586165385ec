"""Runs with W&B segments on this machine, and which of them have something to deliver; no log is opened."""

import os
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rl_research.errors import ConfigError
from rl_research.runs import read_record
from rl_research.sync import ledger, ledger as ledgers
from rl_research.sync.ledger import Ledger
from rl_research.sync.outcome import Verdict

_SEGMENT = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(.+)")
_NUMBERED = re.compile(r"-\d+$")  # what a second segment of the same second is told by
_RUN_FOLDER = ("run.json", ".lease")
_DEPTH = 5  # folders below the one that was named


@dataclass
class LocalRun:
    """A run's segments in one W&B folder, oldest first, and its ledger."""

    folder: Path
    run_id: str
    logs: dict[str, Path]  # name of the segment's folder -> its log
    sizes: dict[str, int]
    ledger: Ledger
    address: str = ""  # of a run that has been fetched from a URL
    absent: Verdict | None = None  # why it could not be
    #: Of a run that has been fetched: keeps a ledger at the URL before anything is sent, or says why not.
    claim: Callable[[Ledger], Verdict | None] | None = None

    @property
    def place(self) -> str:
        """Folder or address of the run, for people."""
        return self.address or str(self.home)

    @property
    def home(self) -> Path:
        """Folder that holds the run, and everything that is copied or moved with it."""
        return self.folder.parent if self.folder.name == "wandb" else self.folder

    @property
    def is_unchanged(self) -> bool:
        """Whether the logs have the sizes that the ledger knows."""
        return self.sizes == {name: part["size"] for name, part in self.ledger.segments.items() if name in self.sizes}

    @property
    def is_done(self) -> bool:
        """Whether all segments have been delivered."""
        return self.ledger.is_synced and self.is_unchanged

    @property
    def pending(self) -> list[str]:
        """Segments that have not been delivered as they are now."""
        known = self.ledger.segments
        return [
            name
            for name, size in self.sizes.items()
            if name not in known or not known[name]["delivered"] or known[name]["size"] != size
        ]


def find(paths: Iterable[str | os.PathLike[str]], *, include_online: bool = False) -> list[LocalRun]:
    """Return the runs in *paths*: logs, segments, W&B folders, run folders or anything above them.

    Raises `ConfigError` for a path that is not there.
    """
    found: dict[tuple[Path, str], LocalRun] = {}
    for given in paths:
        for run in _runs_in(Path(given).expanduser(), include_online=include_online):
            found.setdefault((run.folder, run.run_id), run)
    return list(found.values())


def is_segment(name: str) -> bool:
    """Return whether a folder of this *name* is a segment, as W&B names them."""
    return _SEGMENT.fullmatch(name) is not None


def absent_run(address: str, run_id: str, why: Verdict) -> LocalRun:
    """Return a run at a URL that could not be fetched, or a place that could not be listed."""
    return LocalRun(Path(), run_id, {}, {}, Ledger(run_id), address, why)


def reread(run: LocalRun) -> LocalRun:
    """Return *run* as it is on disk now."""
    sizes = {name: log.stat().st_size for name, log in run.logs.items() if log.exists()}
    logs = {name: run.logs[name] for name in sizes}
    known = ledgers.read(run.folder, run.run_id)
    return replace(run, logs=logs, sizes=sizes, ledger=known)


def _runs_in(path: Path, *, include_online: bool) -> Iterator[LocalRun]:
    if not path.exists():
        raise ConfigError(f"{path}: nothing there. Name a runs folder, a run folder, a W&B folder or a URL.")
    path = path.absolute()
    if path.is_file():
        if path.suffix != ".wandb":
            raise ConfigError(f"{path}: no W&B log. Name one, or a folder that holds some.")
        path = path.parent
    if is_segment(path.name):  # named by itself: its run goes with all its segments
        online = include_online or _is_online(path.name)
        for run in _below(path.parent, 0, include_online=online):
            if path.name in run.logs:
                yield run
    else:
        yield from _below(path, _DEPTH, include_online=include_online)


def _below(folder: Path, depth: int, *, include_online: bool) -> Iterator[LocalRun]:
    try:
        with os.scandir(folder) as entries:
            names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except (PermissionError, FileNotFoundError):
        return
    folders = sorted(name for name, is_folder in names.items() if is_folder)
    segments = [name for name in folders if is_segment(name)]
    if segments:
        for run in _grouped(folder, names, segments):
            if include_online or not all(map(_is_online, run.logs)) or _owes_rows(run):
                yield run
    elif depth > 0:
        if any(name in names for name in _RUN_FOLDER):
            folders = [name for name in folders if name == "wandb"]
        for name in folders:
            if not name.startswith("."):
                yield from _below(folder / name, depth - 1, include_online=include_online)


def _owes_rows(run: LocalRun) -> bool:
    """Return whether rows of an online run are missing, as its record says or because it was killed."""
    record = read_record(run.home)
    return record is not None and record.has_wandb_run and record.wandb.finished is not True


def _grouped(folder: Path, names: Iterable[str], chosen: Iterable[str]) -> Iterator[LocalRun]:
    """Yield the runs of the *chosen* segments of one W&B folder, which holds *names*.

    The online segments of a run that went on offline belong to it: what they could not send comes first.
    """
    ledgers_there = {run_id for name in names if (run_id := ledgers.run_id_of(name))}
    segments = {name: found for name in sorted(chosen, key=_name_without_mode) if (found := _log_of(folder / name))}
    run_ids = {_run_id_of(log) for log, _ in segments.values()} | ledgers_there
    groups: dict[str, list[str]] = {}
    for name, (log, _) in segments.items():
        groups.setdefault(_without_off(_run_id_of(log), run_ids, folder), []).append(name)
    for run_id, members in groups.items():
        yield LocalRun(
            folder,
            run_id,
            {name: segments[name][0] for name in members},
            {name: segments[name][1] for name in members},
            ledgers.read(folder, run_id) if run_id in ledgers_there else Ledger(run_id),
        )


def _log_of(segment: Path) -> tuple[Path, int] | None:
    """Return the log in *segment* and its size; its name is guessed first, because listings cost."""
    rest = _name_after_date(segment.name)
    for guess in sorted({rest, _NUMBERED.sub("", rest)}, reverse=True):
        log = segment / f"run-{guess}.wandb"
        try:
            return log, os.stat(log).st_size  # noqa: PTH116  # ten thousand times
        except OSError:
            continue
    others = sorted(segment.glob("run-*.wandb"))
    return (others[0], others[0].stat().st_size) if others else None


def _name_after_date(segment: str) -> str:
    found = _SEGMENT.fullmatch(segment)
    return found[1] if found else ""


def _run_id_of(log: Path) -> str:
    return log.name.removeprefix("run-").removesuffix(".wandb")


def _without_off(run_id: str, others: Container[str], folder: Path) -> str:
    """Return the run that *run_id* is a part of: a failed online start goes on as ``X-off``."""
    stem = run_id.removesuffix("-off")
    return stem if stem in others or stem == folder.parent.name else run_id


def _name_without_mode(segment: str) -> str:
    return segment.removeprefix("offline-")  # what is left begins with the time


def _is_online(segment: str) -> bool:
    return not segment.startswith("offline-")


def is_verified(run_dir: Path) -> bool:
    """Return whether everything that the run in *run_dir* has recorded for W&B has arrived there.

    False for a run without W&B segments: then nobody has what it recorded.
    """
    runs = find([run_dir], include_online=True)
    return bool(runs) and all(run.is_done for run in runs)


def synced_at(run_dir: Path) -> float | None:
    """Return when the last of *run_dir* was delivered, in seconds since 1970; None if not everything was."""
    if not is_verified(run_dir):
        return None
    return max(run.ledger.synced_at or 0.0 for run in find([run_dir], include_online=True))


def was_sent(log: Path, run_id: str) -> bool:
    """Return whether any of *log*, of a segment of *run_id*, may have reached a server."""
    beside = [log.with_name(f"{log.name}.{mark}") for mark in ("synced", "syncstate")]
    return any(p.exists() for p in (*beside, ledger.path_in(log.parent.parent, run_id)))
