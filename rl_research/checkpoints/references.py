"""How a checkpoint is named: REF, REF@latest, REF@best, REF@step-N, with ``/`` for ``@`` if you like.

REF is a path or URL (of a run, of its checkpoints, of one checkpoint or its manifest) or a ``run_id``,
which is looked for below the folder of runs and, if one is given, below ``storage.url``. Without REF,
the run that was trained last in the folder of runs is meant. A run folder that has no checkpoints left
leads to the ``storage.url`` in its own ``config.yaml``.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rl_research.checkpoints.checkpoint import (
    FOLDER,
    MANIFEST,
    Checkpoint,
    folder_name,
    open_checkpoint,
    survey,
)
from rl_research.config import did_you_mean
from rl_research.errors import CheckpointDamaged, CheckpointError, CheckpointMissing
from rl_research.storage import Store, around_path, below
from rl_research.system import without_password

_log = logging.getLogger(__name__)

LATEST, BEST = "latest", "best"
_CHOICE = re.compile(r"(?:(?P<place>.*)[@/])?(?P<choice>latest|best|step-\d+)", re.DOTALL)
_RUN_ID = re.compile(r"[A-Za-z0-9_.-]+")
_RECORD, _DESCRIPTION = "run.json", "config.yaml"


@dataclass(frozen=True)
class _Search:
    """Where to look: the folder of runs, the URL below which runs are stored, its options."""

    runs_dir: Path
    url: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def store(self, address: str) -> Store:
        return Store(address, self.options)


def find(
    reference: str | os.PathLike[str] = LATEST,
    options: Mapping[str, Any] | None = None,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    url: str | None = None,
) -> Checkpoint:
    """The checkpoint that *reference* names, as the module's docstring says; the latest by default.

    *options* are those of the file system, *url* is the ``storage.url`` below which a ``run_id`` is looked
    for besides *runs_dir*. A newer folder that is no whole checkpoint is passed over with a warning.
    Raises `CheckpointMissing` or `CheckpointDamaged` with what was looked for.
    """
    given = os.fspath(reference)
    search = _Search(Path(runs_dir).expanduser(), url, options or {})
    for place, choice in _readings(given):
        for stores in _alternatives(place, search):
            if (found := _chosen(stores, choice)) is not None:
                if _needs_saying(given, found):
                    _log.info("%s is %s", without_password(given), found.address)
                return found
    raise CheckpointMissing(_nothing_there(given, search))


def places_of(
    reference: str | os.PathLike[str] = "",
    options: Mapping[str, Any] | None = None,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    url: str | None = None,
) -> list[Store]:
    """Where the run that *reference* names keeps checkpoints, damaged ones included.

    ``""`` means the run that was trained last. Raises `CheckpointMissing`.
    """
    given = os.fspath(reference)
    search = _Search(Path(runs_dir).expanduser(), url, options or {})
    readings = _readings(given) if given else [(None, LATEST)]
    for place, _ in readings:
        for stores in _alternatives(place, search):
            if held := [store for store in stores if any(survey(store))]:
                return held
    raise CheckpointMissing(_nothing_there(given, search))


def best_of(found: Sequence[Checkpoint]) -> Checkpoint | None:
    """The best-scored of *found*, oldest first; of equally good ones the newest."""
    scored = [checkpoint for checkpoint in found if math.isfinite(checkpoint.mean)]
    return max(scored, key=lambda c: (c.mean, c.global_step), default=None)


def is_url(reference: str) -> bool:
    """Whether *reference* is a URL rather than a local path."""
    return "://" in reference or "::" in reference


def _readings(given: str) -> Iterator[tuple[str | None, str]]:
    """What *given* may mean: a place (None: the run trained last) and which of its checkpoints."""
    address = given if is_url(given) else str(Path(given).expanduser().absolute())
    before, link, after = around_path(address)
    link = link.rstrip("/").removesuffix(f"/{MANIFEST}")
    if (split := _CHOICE.fullmatch(link)) and split["place"]:
        yield f"{before}{split['place']}{after}", split["choice"]
    if (split := _CHOICE.fullmatch(given)) and _is_run_id(split["place"] or "-"):
        yield split["place"], split["choice"]
    yield f"{before}{link}{after}", LATEST
    if _is_run_id(given):
        yield given, LATEST


def _is_run_id(place: str) -> bool:
    return _RUN_ID.fullmatch(place) is not None


def _alternatives(place: str | None, search: _Search) -> Iterator[list[Store]]:
    """The stores that *place* may mean, the likeliest first; those of one list belong together."""
    if place is None:
        newest = _newest_run(search.runs_dir)
        yield from () if newest is None else _of_folder(str(newest), search)
    elif _is_run_id(place):
        here = search.runs_dir / place
        url = search.url and below(search.url, f"{place}/{FOLDER}")
        yield [Store(here / FOLDER), *([search.store(url)] if url else [])]
        yield from _recorded(here, search)
    else:
        yield from _of_folder(place, search)


def _of_folder(address: str, search: _Search) -> Iterator[list[Store]]:
    address = address.rstrip("/")
    yield [search.store(address)]
    yield [search.store(below(address, FOLDER))]
    if not is_url(address):
        yield from _recorded(Path(address), search)


def _recorded(run_dir: Path, search: _Search) -> Iterator[list[Store]]:
    """The store that a run folder's own description names."""
    if url := storage_url_of(run_dir):
        yield [search.store(below(url, f"{run_dir.name}/{FOLDER}"))]


def storage_url_of(run_dir: Path) -> str | None:
    """The ``storage.url`` in the description of the run in *run_dir*, None where there is none."""
    try:
        described = yaml.safe_load((run_dir / _DESCRIPTION).read_bytes())
        url = described["storage"]["url"]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return None
    return url if isinstance(url, str) else None


def _newest_run(runs_dir: Path) -> Path | None:
    """The run folder below *runs_dir* whose record was written last; none that was set aside."""
    records = [path for path in runs_dir.glob(f"*/{_RECORD}") if ".replaced-" not in path.parent.name]
    newest = max(records, key=lambda path: path.stat().st_mtime_ns, default=None)
    return None if newest is None else newest.parent


def _chosen(stores: Sequence[Store], choice: str) -> Checkpoint | None:
    if choice.startswith("step-"):
        return _at_step(stores, int(choice.removeprefix("step-")))
    surveys = [survey(store) for store in stores]
    found = [checkpoint for whole, _ in surveys for checkpoint in whole]
    others = {name: error for _, broken in surveys for name, error in broken.items()}
    if not found:
        for name in sorted(others, reverse=True)[:1]:
            problem = f"{stores[0].path(name)}: {why_none(others[name])}, and there is no other."
            raise type(others[name])(problem)
        return None
    found.sort(key=lambda checkpoint: checkpoint.global_step)
    warn_of_passed_over(stores[0], found[-1], others)
    best = best_of(found)
    if choice == BEST and best is None:
        raise CheckpointMissing(
            f"{stores[0].path('')}: no checkpoint there has a score, so none is the best. "
            "Ask for 'latest' or 'step-N'."
        )
    return best if choice == BEST else _newest_whole(found)


def _newest_whole(found: Sequence[Checkpoint]) -> Checkpoint:
    """The newest of *found*, oldest first, whose files are all there; of none, the newest.

    What it lacks may not be wanted; who reads it is told.
    """
    problems = []
    for checkpoint in reversed(found):
        try:
            checkpoint.check_sizes()
        except CheckpointDamaged as error:
            problems.append(error)
            continue
        for problem in problems:
            _log.warning("%s; using the one before", problem)
        return checkpoint
    return found[-1]


def warn_of_passed_over(
    store: Store, newest: Checkpoint | None, others: Mapping[str, CheckpointError]
) -> None:
    """Say in a line each which folders newer than the *newest* checkpoint are none themselves."""
    instead = "there is none before it" if newest is None else f"step {newest.global_step} is used"
    for name, error in others.items():
        if newest is None or int(name.removeprefix("step-")) > newest.global_step:
            _log.warning("%s: %s; %s", store.path(name), why_none(error), instead)


def why_none(error: CheckpointError) -> str:
    """Why a step's folder is no checkpoint, in a few words."""
    if isinstance(error, CheckpointMissing):
        return f"it has no {MANIFEST} (being written, cut off or damaged)"
    return str(error)


def _at_step(stores: Sequence[Store], step: int) -> Checkpoint | None:
    for store in stores:
        try:
            return open_checkpoint(store, folder_name(step))
        except CheckpointMissing:
            continue
    steps = sorted({c.global_step for store in stores for c in survey(store)[0]})
    if not steps:
        return None
    nearest = min(steps, key=lambda other: abs(other - step))
    raise CheckpointMissing(
        f"step-{step}: no checkpoint at that step in {stores[0].path('')}; there are "
        f"{_enumerated(steps)}. Did you mean 'step-{nearest}'?"
    )


def _enumerated(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "…", *shown[-4:]])


def _needs_saying(given: str, found: Checkpoint) -> bool:
    """Whether the answer to *given* is not plain: a choice, or a run that was looked for."""
    _, link, after = around_path(given)
    plain = link.rpartition("://")[2].rstrip("/").removesuffix(f"/{MANIFEST}")
    return not found.address.endswith(f"{plain}{after}")


def _nothing_there(given: str, search: _Search) -> str:
    folder = Path(given).expanduser()
    siblings = [] if is_url(given) or not folder.parent.is_dir() else _names(folder.parent)
    run, _, choice = given.rpartition("@")
    word = folder.name.partition("@")[0]
    known = [*siblings, *_names(search.runs_dir)]
    hint = did_you_mean(word, [name for name in known if name != word])
    if run and not _CHOICE.fullmatch(given):
        hint = did_you_mean(choice, [LATEST, BEST]) or hint
    where = f", nor a run of that name in {search.runs_dir}" if _is_run_id(given) else ""
    where += f" or below {without_password(search.url)}" if where and search.url else ""
    return (
        f"{without_password(given) or LATEST}: no checkpoint there{where}.{hint} Give a run folder such as "
        "runs/RUN_ID, its run_id, or one of its checkpoints such as runs/RUN_ID@best or "
        f"runs/RUN_ID@{folder_name(25_000)}."
    )


def _names(folder: Path) -> list[str]:
    """The run folders in *folder*."""
    return sorted(path.parent.name for path in folder.glob(f"*/{_RECORD}"))
