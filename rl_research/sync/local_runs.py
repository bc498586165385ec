"""Runs with W&B segments on this machine, and which of them have something to deliver; no log is opened."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rl_research.errors import ConfigError
from rl_research.runs import read_record
from rl_research.sync import ledger as ledgers
from rl_research.sync.ledger import Ledger
from rl_research.sync.outcome import Outcome, Verdict
from rl_research.system import expanded
from rl_research.tracking import SyncCommand, WandbApi

_SEGMENT = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(.+)")
_NUMBERED = re.compile(r"-\d+$")  # what a second segment of the same second is told by
_OFFLINE = "offline-"  # how the names of such segments begin; what follows begins with the time
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
        return self.sizes == {name: part.size for name, part in self.ledger.segments.items() if name in self.sizes}

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
            if name not in known or not known[name].delivered or known[name].size != size
        ]

    def outcome(self, verdict: Verdict | None = None, **more: Any) -> Outcome:
        """Return the outcome that the ledger holds, with *verdict* and *more* in place of its own values."""
        ledger = self.ledger
        said = verdict or Verdict(ledger.state, ledger.reason, ledger.remedy)
        names = ("rows", "rows_recorded", "repeated", "files", "artifacts", "url")
        counts = {name: getattr(ledger, name) for name in names} | more
        return Outcome(self.run_id, self.place, said.state, reason=said.reason, remedy=said.remedy, **counts)


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
            from rl_research.sync import gateway  # with the store, which runs of this machine need not

            at_url = gateway.fetched_runs(url, options, include_online=include_online, to_send=to_send)
            runs += stack.enter_context(at_url)
        yield runs


def find(paths: Iterable[str | os.PathLike[str]], *, include_online: bool = False) -> list[LocalRun]:
    """Return the runs in *paths*: logs, segments, W&B folders, run folders or anything above them.

    Raises `ConfigError` for a path that is not there.
    """
    found: dict[tuple[Path, str], LocalRun] = {}
    for given in paths:
        for run in _runs_in(expanded(given), include_online=include_online):
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
    return replace(run, logs=logs, sizes=sizes, ledger=ledgers.read(run.folder, run.run_id))


def _runs_in(path: Path, *, include_online: bool) -> Iterator[LocalRun]:
    if not path.exists():
        raise ConfigError(f"{path}: nothing there. Name a runs folder, a run folder, a W&B folder or a URL.")
    path = path.absolute()
    if path.is_file():
        if path.suffix != ".wandb":
            raise ConfigError(f"{path}: no W&B log. Name one, or a folder that holds some.")
        path = path.parent
    if is_segment(path.name):  # named by itself: its run goes with all its segments
        online = include_online or not path.name.startswith(_OFFLINE)
        yield from (run for run in _below(path.parent, 0, include_online=online) if path.name in run.logs)
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
            if include_online or any(name.startswith(_OFFLINE) for name in run.logs) or _owes_rows(run):
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


def _grouped(folder: Path, names: Iterable[str], chosen: Iterable[str]) -> Iterable[LocalRun]:
    """Return the runs of the *chosen* segments of one W&B folder, which holds *names*.

    The online segments of a run that went on offline belong to it: what they could not send comes first.
    """
    with_ledger = {run_id for name in names if (run_id := ledgers.run_id_of(name))}
    by_time = sorted(chosen, key=lambda name: name.removeprefix(_OFFLINE))
    found = {name: it for name in by_time if (it := _log_of(folder / name)) is not None}
    runs: dict[str, LocalRun] = {}
    for name, (log, size) in found.items():
        run_id = log.name[len("run-") : -len(".wandb")]
        if run_id not in runs:
            ledger = ledgers.read(folder, run_id) if run_id in with_ledger else Ledger(run_id)
            runs[run_id] = LocalRun(folder, run_id, {}, {}, ledger)
        runs[run_id].logs[name], runs[run_id].sizes[name] = log, size
    return runs.values()


def _log_of(segment: Path) -> tuple[Path, int] | None:
    """Return the log in *segment* and its size; its name is guessed first, because listings cost."""
    match = _SEGMENT.fullmatch(segment.name)
    rest = match[1] if match else ""
    for guess in sorted({rest, _NUMBERED.sub("", rest)}, reverse=True):
        log = segment / f"run-{guess}.wandb"
        with suppress(OSError):
            return log, os.stat(log).st_size  # noqa: PTH116  # ten thousand times
    others = sorted(segment.glob("run-*.wandb"))
    return (others[0], others[0].stat().st_size) if others else None


def is_verified(run_dir: Path) -> bool:
    """Return whether everything that the run in *run_dir* has recorded for W&B has arrived there.

    False for a run without W&B segments: then nobody has what it recorded.
    """
    runs = find([run_dir], include_online=True)
    return bool(runs) and all(run.is_done for run in runs)


def was_sent(log: Path, run_id: str) -> bool:
    """Return whether any of *log*, of a segment of *run_id*, may have reached a server."""
    beside = [log.with_name(log.name + mark) for mark in SyncCommand.MARKS]
    return any(p.exists() for p in (*beside, ledgers.path_in(log.parent.parent, run_id)))


@dataclass(frozen=True)
class Policy:
    """Which runs are tried, and when."""

    force: bool = False  # also those that are blocked, or delivered
    only_due: bool = False  # not before their next try is due


def reason_to_skip(run: LocalRun, account: WandbApi, policy: Policy) -> Outcome | None:
    """Return why *run* is skipped, None if it is to be synced.

    Its ledger alone tells, so ten thousand synced runs cost next to nothing.
    """
    ledger = run.ledger
    if run.absent is not None:
        return run.outcome(run.absent)
    if policy.force:
        return None
    if run.is_done:
        return run.outcome(Verdict("unchanged"))
    if not run.is_unchanged:
        return None
    same = ledger.key == account.fingerprint and ledger.wandb == wandb_version()
    early = policy.only_due and ledger.next_try > time.time()
    if same and (ledger.is_stuck or (early and ledger.state == "blocked")):
        return run.outcome()
    if same and early:
        return run.outcome(Verdict("waiting", ledger.reason, ledger.remedy))
    return None


def wandb_version() -> str:
    """Return the version of wandb without importing it."""
    return metadata.version("wandb")
