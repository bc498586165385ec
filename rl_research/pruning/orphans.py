"""Files of no manifest in a run's checkpoints, wherever these lie.

What is on its way looks like an orphan until its manifest is there. So only what is older than the grace
period by the store's own clock goes, whole folders by their youngest file; segments that an announced
upload counts on stay; and everything is looked at again just before it is removed.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rl_research.checkpoints import MANIFEST, REPLAY, STEP, needed_segments, survey
from rl_research.storage import Entry, Store

_STAGED = re.compile(r"\.(step-\d{9,})\.(?P<kind>[0-9a-f]+\.tmp|former)")
_SEGMENT = re.compile(r"rows-.*|\..*\.tmp")
_BATCH = 50  # files between two looks at the manifests


@dataclass(frozen=True)
class Orphans:
    """Files of no manifest that are old enough, by name, and how many have no known age."""

    old: dict[str, Entry]
    timeless: int


def find_orphans(store: Store, before: float, gone: Collection[str] = ()) -> Orphans:
    """Return the orphans in *store* that were written before the time *before*.

    *gone* are checkpoints that are about to be removed: their segments count as needed no more.
    """
    entries = store.entries()  # before the manifests are read: what is completed meanwhile is whole
    found, others = survey(store)
    named = {c.name: {*c.files, MANIFEST} for c in found}
    left_alone = {REPLAY, *gone, *(name for name in others if f"{name}/{MANIFEST}" in entries)}
    groups: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        folder, _, base = name.partition("/")
        if folder in left_alone or not _is_ours(folder, entries):
            continue
        if folder not in named:
            groups.setdefault(folder, {})[name] = entry
        elif base not in named[folder] and "/" not in base:
            groups[name] = {name: entry}
    stale = {name for name, group in groups.items() if _is_old(group, before)}
    groups |= _spare_segments(store, entries, but={*gone, *stale})
    old = [group for group in groups.values() if _is_old(group, before)]
    timeless = sum(e.modified is None for group in groups.values() for e in group.values())
    return Orphans({name: e for group in old for name, e in group.items()}, timeless)


def _spare_segments(store: Store, entries: Mapping[str, Entry], but: Collection[str]) -> dict[str, dict[str, Entry]]:
    """Return the replay segments that only the checkpoints and announcements *but* need, if any may go."""
    needed = needed_segments(store, but)
    if needed is None or _waiting_replacements(entries):
        return {}
    return {
        name: {name: entry}
        for name, entry in entries.items()
        if name.startswith(f"{REPLAY}/") and _is_spare(name, needed)
    }


def remove_orphans(store: Store, names: Collection[str], before: float) -> None:
    """Remove those of *names* that are orphans still; their folders go when they are empty."""
    left = list(names)
    while left:
        batch, left = left[:_BATCH], left[_BATCH:]
        still = find_orphans(store, before).old
        for name in batch:
            if name in still:
                store.remove(name)
    for folder in sorted({name.rpartition("/")[0] for name in names}, reverse=True):
        if folder:
            store.remove_empty_folder(folder)


def _is_ours(folder: str, entries: Collection[str]) -> bool:
    """Return whether a file in *folder*, which has no manifest, is one that this package has written."""
    if STEP.fullmatch(folder):
        return True
    staged = _STAGED.fullmatch(folder)
    if staged is None:
        return folder.startswith(".") and folder.endswith(".tmp")
    return staged["kind"] != "former" or folder not in _waiting_replacements(entries)


def _waiting_replacements(entries: Collection[str]) -> set[str]:
    """Folders of a checkpoint that was about to be replaced, where the new one has not arrived."""
    staged = [_STAGED.fullmatch(name.partition("/")[0]) for name in entries]
    return {
        found[0]
        for found in staged
        if found
        and found["kind"] == "former"
        and f"{found[0]}/{MANIFEST}" in entries
        and f"{found[1]}/{MANIFEST}" not in entries
    }


def _is_spare(name: str, needed: Collection[str]) -> bool:
    base = name.removeprefix(f"{REPLAY}/")
    return base not in needed and _SEGMENT.fullmatch(base) is not None


def _is_old(group: Mapping[str, Entry], before: float) -> bool:
    return all(e.modified is not None and e.modified < before for e in group.values())
