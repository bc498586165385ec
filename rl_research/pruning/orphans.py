"""Files of no manifest in a run's checkpoints, wherever these lie.

What is on its way looks like an orphan until its manifest is there. So only what is older than the grace
period by the store's own clock goes, whole folders by their youngest file; segments that an announced
upload counts on stay; and everything is looked at again just before it is removed.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rl_research.checkpoints import MANIFEST, REPLAY, STEP, Checkpoint, needed_segments, survey
from rl_research.storage import Entry, Store

_FORMER = re.compile(rf"\.({STEP.pattern})\.former")
_OURS = re.compile(rf"{STEP.pattern}|{_FORMER.pattern}|\..*\.tmp")  # folders and files of this package
_SEGMENT = re.compile(rf"{REPLAY}/(?P<name>rows-.*|\..*\.tmp)")
_BATCH = 50  # files between two looks at the manifests


@dataclass(frozen=True)
class Orphans:
    """Files of no manifest that are old enough, by name, and how many have no known age."""

    old: dict[str, Entry]
    timeless: int


def find_orphans(store: Store, before: float, gone: Collection[str] = ()) -> Orphans:
    """Return the orphans in *store* that were written before the time *before*, in seconds since 1970.

    *gone* are checkpoints that are about to be removed: their segments count as needed no more.
    """
    entries = store.entries()  # before the manifests are read: what is completed meanwhile is whole
    found, others = survey(store)
    waiting = _waiting_replacements(entries)
    unreadable = {name for name in others if f"{name}/{MANIFEST}" in entries}
    groups = _unnamed(entries, found, {REPLAY, *gone, *waiting, *unreadable})
    stale = {name for name, group in groups.items() if _is_old(group, before)}
    needed = None if waiting else needed_segments(store, {*gone, *stale})
    if needed is not None:
        groups |= {name: {name: entry} for name, entry in entries.items() if _is_spare(name, needed)}
    old = [group for group in groups.values() if _is_old(group, before)]
    timeless = sum(e.modified is None for group in groups.values() for e in group.values())
    return Orphans({name: e for group in old for name, e in group.items()}, timeless)


def _unnamed(
    entries: Mapping[str, Entry], found: Sequence[Checkpoint], left_alone: Collection[str]
) -> dict[str, dict[str, Entry]]:
    """Return the files of this package that no manifest of *found* names, in groups that go as a whole."""
    named = {c.name: {*c.files, MANIFEST} for c in found}
    groups: dict[str, dict[str, Entry]] = defaultdict(dict)
    for name, entry in entries.items():
        folder, _, base = name.partition("/")
        if folder in left_alone or not _OURS.fullmatch(folder):
            continue
        if folder not in named:
            groups[folder][name] = entry
        elif base not in named[folder] and "/" not in base:
            groups[name][name] = entry
    return groups


def remove_orphans(store: Store, names: Collection[str], before: float) -> None:
    """Remove those of *names* that are orphans still; their folders go when they are empty."""
    left = list(names)
    while left:
        batch, left = left[:_BATCH], left[_BATCH:]
        still = find_orphans(store, before).old
        for name in batch:
            if name in still:
                store.remove(name)
    for folder in sorted({name.rpartition("/")[0] for name in names} - {""}, reverse=True):
        store.remove_empty_folder(folder)


def _waiting_replacements(entries: Collection[str]) -> set[str]:
    """Return the folders of checkpoints that were to be replaced, where the new one has not arrived."""
    folders = map(_FORMER.fullmatch, {name.partition("/")[0] for name in entries})
    return {
        former[0]
        for former in folders
        if former and f"{former[0]}/{MANIFEST}" in entries and f"{former[1]}/{MANIFEST}" not in entries
    }


def _is_spare(name: str, needed: Collection[str]) -> bool:
    segment = _SEGMENT.fullmatch(name)
    return segment is not None and segment["name"] not in needed


def _is_old(group: Mapping[str, Entry], before: float) -> bool:
    return all(e.modified is not None and e.modified < before for e in group.values())
