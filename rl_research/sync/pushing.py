"""Runs pushed to a URL, from where a gateway syncs them.

For machines that do not reach W&B's server. The files that a log names go first, the log last: a run that is
found at the URL is whole.
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_research.errors import ConfigError
from rl_research.runs import RECORD
from rl_research.storage import below
from rl_research.sync.gateway import NOT_FETCHED
from rl_research.sync.liveness import is_live
from rl_research.sync.local_runs import LocalRun
from rl_research.sync.logs import LogFacts, scan
from rl_research.sync.outcome import Outcome, Verdict
from rl_research.sync.threaded_store import ThreadedStore, verdict_of
from rl_research.tracking import SyncCommand

_FILES, _DEBUG = "files", "logs"  # folders of a segment


def push(
    runs: Sequence[LocalRun],
    url: str,
    options: Mapping[str, Any] | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Push what *runs* have to deliver to *url*; *report* is called with each outcome.

    What has been delivered, or is being written, is left alone, and so is what is there already. Raises
    `ConfigError` where the URL is wrong.
    """
    if not url.strip():
        raise ConfigError("--push: no URL. Name one such as s3://bucket/runs, or a folder.")
    outcomes = []
    with ThreadedStore(url, options) as stores:
        for run in runs:
            try:
                outcome = _pushed(run, stores)
            except Exception as error:  # noqa: BLE001  # `verdict_of` raises what is no failure of the store
                outcome = run.outcome(verdict_of(error))
            report(outcome)
            outcomes.append(outcome)
    return outcomes


def _pushed(run: LocalRun, stores: ThreadedStore) -> Outcome:
    if run.absent is not None:
        return run.outcome(run.absent)
    if run.is_done:
        return run.outcome(Verdict("unchanged"))
    logs = [scan(log, run.home) for log in run.logs.values()]
    if is_live(run, logs):
        return run.outcome(Verdict("live", "it is being written; push it when it has ended"))
    lost = " ".join(f"lost: {path}." for facts in logs for path in facts.lost)
    counts = {
        "rows": sum(facts.rows for facts in logs),
        "rows_recorded": sum(facts.rows for facts in logs),
        "artifacts": sum(facts.artifacts for facts in logs),
        "files": sum(facts.files for facts in logs),
        "url": below(stores.url, run.home.name),
    }
    own = {_name(facts.log, run.home): facts.log for facts in logs}
    if not _missing(stores, own):
        return run.outcome(Verdict("unchanged", lost), **counts)
    store = stores.mine()
    for files in (_missing(stores, dict(_needed(run, logs))), own):
        if files:
            store.put_files(files)
    return run.outcome(Verdict("pushed", lost), **counts)


def _needed(run: LocalRun, logs: Iterable[LogFacts]) -> Iterator[tuple[str, Path]]:
    """Yield the files that *logs* name, with their names below the URL."""
    record = run.home / RECORD
    if record.is_file():
        yield _name(record, run.home), record
    for facts in logs:
        segment = facts.log.parent
        for path in sorted(segment.rglob("*")):
            is_ours = path == facts.log or path.suffix in SyncCommand.MARKS
            if path.is_file() and not is_ours and path.relative_to(segment).parts[0] != _DEBUG:
                yield _name(path, run.home), path
        for found in facts.places.values():
            yield _name(Path(found), run.home), Path(found)


def _name(path: Path, home: Path) -> str:
    """Return the name of *path* below the URL: as in the run's folder, else with all its parents."""
    if path.is_relative_to(home):
        inside = path.relative_to(home)
        if inside.parts[0] not in NOT_FETCHED:
            return posixpath.join(home.name, inside.as_posix())
    return posixpath.join(home.name, *path.absolute().parts[1:])


def _missing(stores: ThreadedStore, files: Mapping[str, Path]) -> dict[str, Path]:
    """Return those of *files* that are not there in their size, or may have changed without changing it."""
    folders = sorted({posixpath.dirname(name) for name in files})
    listed = stores.each(lambda store, folder: store.sizes(folder), folders)
    sizes = {
        posixpath.join(folder, base): size
        for folder, found in zip(folders, listed, strict=True)
        for base, size in found.items()
    }
    return {
        name: path
        for name, path in files.items()
        if sizes.get(name) != path.stat().st_size or path.name == RECORD or path.parent.name == _FILES
    }
