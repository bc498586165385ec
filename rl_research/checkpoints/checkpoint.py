"""A checkpoint in a store, and every one that a store has."""

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from rl_research.checkpoints.manifest import Manifest
from rl_research.errors import CheckpointDamaged, CheckpointError, CheckpointMissing
from rl_research.storage import Store

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FOLDER = "checkpoints"
INTENT = "uploading.json"  # the manifest of an upload under way; a retry that finds its own goes on
REPLAY = "replay"  # beside the checkpoints, the segments that they share
STEP = re.compile(r"step-(\d{9,})")
_MAX_MANIFEST = 4 << 20  # bytes; a manifest is a few kilobytes


def folder_name(global_step: int) -> str:
    """Return the folder of the checkpoint at *global_step*; folders sort by step."""
    return f"step-{global_step:09d}"


def step_of(folder: str) -> int:
    """Return the step of a checkpoint's *folder*."""
    return int(folder.removeprefix("step-"))


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: the place of its folder, and its manifest."""

    store: Store
    name: str
    manifest: Manifest

    @property
    def address(self) -> str:
        """Its folder, as a local path or a URL."""
        return self.store.path(self.name) if self.store.is_local else self.store.address(self.name)

    @property
    def global_step(self) -> int:
        """Environment steps trained when it was committed."""
        return self.manifest.global_step

    @property
    def mean(self) -> float:
        """Mean return of the evaluation while training, else of the final one, else NaN."""
        scores = self.manifest.scores or self.manifest.final_scores
        return scores.mean if scores else math.nan

    @property
    def files(self) -> dict[str, tuple[int, str]]:
        """Size in bytes and SHA-256 of each file."""
        return {name: (file.size, file.sha256) for name, file in self.manifest.files.items()}

    @property
    def segments(self) -> list[str]:
        """Names of its replay segments, oldest rows first; other checkpoints may share them."""
        return sorted(self.manifest.shared)

    @property
    def size(self) -> int:
        """Bytes of everything it needs."""
        return sum(size for size, _ in self.paths().values())

    def paths(self) -> dict[str, tuple[int, str]]:
        """Return size and SHA-256 of everything it needs, by its path in the store."""
        own = {f"{self.name}/{name}": facts for name, facts in self.files.items()}
        shared = self.manifest.shared.items()
        return own | {f"{REPLAY}/{name}": (file.size, file.sha256) for name, file in shared}

    def exists(self) -> bool:
        """Return whether its manifest has not been removed meanwhile."""
        return self.store.size(f"{self.name}/{MANIFEST}") is not None

    def verify(self) -> None:
        """Hash every file, a piece at a time; `CheckpointDamaged` for the first that is wrong."""
        self.check_sizes()
        for path, (size, sha256) in self.paths().items():
            with self._reading(path):
                self._compare(path, self.store.sha256(path, size), sha256)

    def check_sizes(self, sizes: Mapping[str, int] | None = None) -> None:
        """Raise `CheckpointDamaged` for the first file that is not there in its size.

        The store is asked for its *sizes*, in bytes by path, unless they are given.
        """
        if sizes is None:
            folders = [self.name, *([REPLAY] if self.segments else [])]
            sizes = sizes_in(self.store, folders)
        for path, (size, _) in self.paths().items():
            self._compare_size(path, sizes.get(path), size)

    def read(self, name: str) -> bytes:
        """Return the bytes of one file or segment; `CheckpointDamaged` if they are not the manifest's."""
        path = f"{REPLAY if name in self.manifest.shared else self.name}/{name}"
        if path not in self.paths():
            raise CheckpointMissing(f"{self.address}: its manifest names no file '{path}'")
        size, expected = self.paths()[path]
        self._compare_size(path, self.store.size(path), size)
        with self._reading(path):
            data = b"".join(self.store.pieces(path, size))
        self._compare(path, hashlib.sha256(data).hexdigest(), expected)
        return data

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise CheckpointDamaged(f"{self.store.path(path)}: it has just been removed") from None

    def _compare_size(self, path: str, found: int | None, expected: int) -> None:
        if found != expected:
            raise CheckpointDamaged(
                f"{self.store.path(path)}: {found or 'no'} bytes, where the manifest says {expected}"
            )

    def _compare(self, path: str, found: str, expected: str) -> None:
        if found != expected:
            raise CheckpointDamaged(f"{self.store.path(path)}: its SHA-256 is not the manifest's")


def sizes_in(store: Store, folders: Iterable[str]) -> dict[str, int]:
    """Return the size in bytes of each file in *folders* of *store*, by path; one listing a folder."""
    return {f"{folder}/{name}": size for folder in folders for name, size in store.sizes(folder).items()}


# ---------------------------------------------------------------- opening


def open_checkpoint(store: Store, name: str) -> Checkpoint:
    """Return the checkpoint in the folder *name*; `CheckpointMissing` or `CheckpointDamaged`."""
    where = f"{store.path(name)}/{MANIFEST}"
    size = store.size(f"{name}/{MANIFEST}")
    if size is None:
        raise CheckpointMissing(
            f"{store.path(name)}: no checkpoint there (it has no {MANIFEST}). "
            "Give a run folder, or the folder of a checkpoint."
        )
    if size > _MAX_MANIFEST:
        raise CheckpointDamaged(f"{where}: {size} bytes is no manifest")
    try:
        manifest = Manifest.model_validate_json(store.read(f"{name}/{MANIFEST}"))
    except FileNotFoundError:
        raise CheckpointMissing(f"{where}: it has just been removed") from None
    except (ValidationError, IsADirectoryError) as error:
        raise CheckpointDamaged(f"{where} is no manifest: {_reason(error)}") from None
    if folder_name(manifest.global_step) != name:
        raise CheckpointDamaged(f"{where}: its step {manifest.global_step} is not its folder's")
    return Checkpoint(store, name, manifest)


def _reason(error: ValidationError | IsADirectoryError) -> str:
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    first = error.errors()[0]
    where = ".".join(part for part in map(str, first["loc"]) if part != "[key]")
    return " ".join(f"{where[:80]!r}: {first['msg'].removeprefix('Value error, ')}".split())


def read_manifest(store: Store, path: str) -> Manifest | None:
    """Return the manifest in the file *path* of *store*, None if there is none that can be read."""
    try:
        return Manifest.model_validate_json(store.read(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValidationError):
        return None


def survey(store: Store) -> tuple[list[Checkpoint], dict[str, CheckpointError]]:
    """Return every checkpoint in *store*, oldest first, and why each other step's folder is none."""
    found, others = [], {}
    for name in store.folders():
        if STEP.fullmatch(name):
            try:
                found.append(open_checkpoint(store, name))
            except CheckpointError as error:
                others[name] = error
    return sorted(found, key=lambda checkpoint: checkpoint.global_step), others


def list_checkpoints(store: Store) -> list[Checkpoint]:
    """Return every checkpoint in *store*, oldest first; a damaged manifest is a warning."""
    found, others = survey(store)
    for error in others.values():
        if isinstance(error, CheckpointDamaged):  # what is missing is being written, or removed
            _log.warning("%s; it is left out", error)
    return found


def local_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Return every checkpoint in the run folder *run_dir*, oldest first."""
    return list_checkpoints(Store(run_dir / FOLDER))


def by_score(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Return those of *found* that have a score, the best last; of equally good ones the newest."""
    scored = (checkpoint for checkpoint in found if math.isfinite(checkpoint.mean))
    return sorted(scored, key=lambda checkpoint: (checkpoint.mean, checkpoint.global_step))


def describe(error: CheckpointError) -> str:
    """Return in a few words why a step's folder is no checkpoint."""
    if isinstance(error, CheckpointMissing):
        return f"it has no {MANIFEST} (being written, cut off or damaged)"
    return str(error)


def warn_of_passed_over(store: Store, newest: Checkpoint | None, others: Mapping[str, CheckpointError]) -> None:
    """Warn of each folder newer than the *newest* checkpoint that is none itself."""
    instead = "there is none before it" if newest is None else f"step {newest.global_step} is used"
    for name, error in others.items():
        if newest is None or step_of(name) > newest.global_step:
            _log.warning("%s: %s; %s", store.path(name), describe(error), instead)
