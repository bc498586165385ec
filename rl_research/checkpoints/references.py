"""How a checkpoint is named: REF, REF@latest, REF@best, REF@step-N, with ``/`` for ``@`` if you like.

REF is a path or URL (of a run, of its checkpoints, of one checkpoint or its manifest) or a ``run_id``,
which is looked for below the folder of runs and, if one is given, below ``storage.url``. Without REF,
the run that was trained last in the folder of runs is meant. A run folder that has no checkpoints left
leads to the ``storage.url`` in its own ``config.yaml``.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rl_research.checkpoints.checkpoint import (
    FOLDER,
    MANIFEST,
    Checkpoint,
    by_score,
    describe,
    folder_name,
    open_checkpoint,
    step_of,
    survey,
    warn_of_passed_over,
)
from rl_research.config import did_you_mean, load_storage
from rl_research.errors import CheckpointDamaged, CheckpointMissing
from rl_research.storage import Store, around_path, below
from rl_research.system import expanded, without_password

_log = logging.getLogger(__name__)

_CHOICE = re.compile(r"(?:(?P<place>.*)[@/])?(?P<choice>latest|best|step-\d+)", re.DOTALL)
_RUN_ID = re.compile(r"[A-Za-z0-9_.-]+")
_RECORD, _DESCRIPTION = "run.json", "config.yaml"


def find(
    reference: str | os.PathLike[str] = "latest",
    options: Mapping[str, Any] | None = None,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    url: str | None = None,
) -> Checkpoint:
    """Return the checkpoint that *reference* names, as the module's docstring says; the latest by default.

    *options* are those of the file system, *url* is the ``storage.url`` below which a ``run_id`` is looked
    for besides *runs_dir*. A newer folder that is no whole checkpoint is passed over with a warning.
    Raises `CheckpointMissing` or `CheckpointDamaged` with what was looked for.
    """
    given = os.fspath(reference)
    search = _Search(expanded(runs_dir), url, options or {})
    for stores, choice in search.candidates(given):
        if (found := _chosen(stores, choice)) is not None:
            if not _names_plainly(given, found):
                _log.info("%s is %s", without_password(given), found.address)
            return found
    raise CheckpointMissing(search.nothing_there(given))


def find_in_storage(reference: str, overrides: Iterable[str], runs_dir: str) -> Checkpoint:
    """Return the checkpoint that *reference* names, here or in the storage of *overrides*."""
    storage = load_storage(overrides)
    return find(reference, storage.options, runs_dir=runs_dir, url=storage.url)


def places_of(
    reference: str | os.PathLike[str] = "",
    options: Mapping[str, Any] | None = None,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    url: str | None = None,
) -> list[Store]:
    """Return where the run that *reference* names keeps checkpoints, damaged ones included.

    ``""`` means the run that was trained last. Raises `CheckpointMissing`.
    """
    given = os.fspath(reference)
    search = _Search(expanded(runs_dir), url, options or {})
    for stores, _ in search.candidates(given):
        if places := [store for store in stores if any(survey(store))]:
            return places
    raise CheckpointMissing(search.nothing_there(given))


def is_url(reference: str) -> bool:
    """Return whether *reference* is a URL rather than a local path."""
    return "://" in reference or "::" in reference


def storage_url_of(run_dir: Path) -> str | None:
    """Return the ``storage.url`` in the description of the run in *run_dir*, None where there is none."""
    try:
        url = yaml.safe_load((run_dir / _DESCRIPTION).read_bytes())["storage"]["url"]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return None
    return url if isinstance(url, str) else None


def _is_run_id(place: str) -> bool:
    return _RUN_ID.fullmatch(place) is not None


@dataclass(frozen=True)
class _Search:
    """Places to search: the folder of runs, the URL below which runs are stored, its options."""

    runs_dir: Path
    url: str | None
    options: Mapping[str, Any]

    def candidates(self, given: str) -> Iterator[tuple[list[Store], str]]:
        """Yield the stores that *given* may mean, and which of their checkpoints; the likeliest first.

        Stores of one list belong together.
        """
        if not given:
            yield from self._trained_last("latest")
            return
        address = given if is_url(given) else str(expanded(given).absolute())
        before, link, after = around_path(address)
        link = link.rstrip("/").removesuffix(f"/{MANIFEST}")
        if (split := _CHOICE.fullmatch(link)) and split["place"]:
            yield from self._below(f"{before}{split['place']}{after}", split["choice"])
        if (split := _CHOICE.fullmatch(given)) and split["place"] is None:
            yield from self._trained_last(split["choice"])
        elif split and _is_run_id(split["place"]):
            yield from self._of_run(split["place"], split["choice"])
        yield from self._below(f"{before}{link}{after}", "latest")
        if _is_run_id(given):
            yield from self._of_run(given, "latest")

    def _of_run(self, run_id: str, choice: str) -> Iterator[tuple[list[Store], str]]:
        here = [Store(self.runs_dir / run_id / FOLDER)]
        stored = [self._store(below(self.url, f"{run_id}/{FOLDER}"))] if self.url else []
        yield here + stored, choice
        yield from self._recorded(self.runs_dir / run_id, choice)

    def _below(self, address: str, choice: str) -> Iterator[tuple[list[Store], str]]:
        address = address.rstrip("/")
        yield [self._store(address)], choice
        yield [self._store(below(address, FOLDER))], choice
        if not is_url(address):
            yield from self._recorded(Path(address), choice)

    def _recorded(self, run_dir: Path, choice: str) -> Iterator[tuple[list[Store], str]]:
        """Yield the store that a run folder's own description names."""
        if url := storage_url_of(run_dir):
            yield [self._store(below(url, f"{run_dir.name}/{FOLDER}"))], choice

    def _store(self, address: str) -> Store:
        return Store(address, self.options)

    def _trained_last(self, choice: str) -> Iterator[tuple[list[Store], str]]:
        """Yield those of the run folder whose record was written last; none that was set aside."""
        runs = [run for run in _runs_in(self.runs_dir) if ".replaced-" not in run.name]
        if runs:
            newest = max(runs, key=lambda run: (run / _RECORD).stat().st_mtime_ns)
            yield from self._below(str(newest), choice)

    def nothing_there(self, given: str) -> str:
        """Say what was looked for, and what may have been meant."""
        folder = expanded(given)
        known = [run.name for run in _runs_in(self.runs_dir)]
        if not is_url(given):
            known = [*(run.name for run in _runs_in(folder.parent)), *known]
        run, _, choice = given.rpartition("@")
        word = folder.name.partition("@")[0]
        hint = did_you_mean(word, [name for name in known if name != word])
        if run and not _CHOICE.fullmatch(given):
            hint = did_you_mean(choice, ["latest", "best"]) or hint
        where = f", nor a run of that name in {self.runs_dir}" if _is_run_id(given) else ""
        where += f" or below {without_password(self.url)}" if where and self.url else ""
        return (
            f"{without_password(given) or 'latest'}: no checkpoint there{where}.{hint} "
            "Give a run folder such as runs/RUN_ID, its run_id, or one of its checkpoints such as "
            f"runs/RUN_ID@best or runs/RUN_ID@{folder_name(25_000)}."
        )


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{_RECORD}"))


def _chosen(stores: Sequence[Store], choice: str) -> Checkpoint | None:
    if choice.startswith("step-"):
        return _at_step(stores, step_of(choice))
    surveys = [survey(store) for store in stores]
    found = sorted((c for whole, _ in surveys for c in whole), key=lambda c: c.global_step)
    others = {name: error for _, broken in surveys for name, error in broken.items()}
    if not found:
        for name in sorted(others, reverse=True)[:1]:
            problem = f"{stores[0].path(name)}: {describe(others[name])}, and there is no other."
            raise type(others[name])(problem)
        return None
    warn_of_passed_over(stores[0], found[-1], others)
    if choice == "latest":
        return _newest_whole(found)
    if not (best := by_score(found)):
        raise CheckpointMissing(
            f"{stores[0].path('')}: no checkpoint there has a score, so none is the best. Ask for 'latest' or 'step-N'."
        )
    return best[-1]


def _newest_whole(found: Sequence[Checkpoint]) -> Checkpoint:
    """Return the newest of *found*, oldest first, whose files are all there; of none, the newest.

    What it lacks may not be needed; whoever reads that file gets the error.
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


def _at_step(stores: Sequence[Store], step: int) -> Checkpoint | None:
    for store in stores:
        try:
            return open_checkpoint(store, folder_name(step))
        except CheckpointMissing:
            continue
    steps = sorted({c.global_step for store in stores for c in survey(store)[0]})
    if not steps:
        return None
    shown = [str(other) for other in steps]
    there = ", ".join(shown if len(shown) <= 8 else [*shown[:3], "…", *shown[-4:]])
    nearest = min(steps, key=lambda other: abs(other - step))
    raise CheckpointMissing(
        f"step-{step}: no checkpoint at that step in {stores[0].path('')}; there are {there}. "
        f"Did you mean 'step-{nearest}'?"
    )


def _names_plainly(given: str, found: Checkpoint) -> bool:
    """Return whether *given* is the address of *found*, rather than a choice or a run that was looked for."""
    _, link, after = around_path(given)
    plain = link.rpartition("://")[2].rstrip("/").removesuffix(f"/{MANIFEST}")
    return found.address.endswith(f"{plain}{after}")
