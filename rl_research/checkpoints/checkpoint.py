"""What a checkpoint is, and where to find one."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rl_research.checkpoints.manifest import Manifest
from rl_research.errors import CheckpointDamaged, CheckpointError, CheckpointMissing
from rl_research.storage import Store

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FOLDER = "checkpoints"
INTENT = "uploading.json"  # what is on its way; a retry that reads its own words skips what is there
REPLAY = "replay"  # beside the checkpoints, the segments that they share
STEP = re.compile(r"step-(\d{9,})")
_MAX_MANIFEST = 4 << 20  # bytes; a manifest is a few kilobytes


def folder_name(global_step: int) -> str:
    """The folder of the checkpoint at *global_step*, which sorts by step."""
    return f"step-{global_step:09d}"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: where its folder is, and what its manifest says."""

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
        """Its mean return: of the evaluation while training, else of the final one, else NaN."""
        scores = self.manifest.scores or self.manifest.final_scores
        return scores.mean if scores else math.nan

    @property
    def files(self) -> dict[str, tuple[int, str]]:
        """Size in bytes and SHA-256 of each file."""
        return {name: (file.size, file.sha256) for name, file in self.manifest.files.items()}

    @property
    def shared(self) -> dict[str, tuple[int, str]]:
        """Size in bytes and SHA-256 of each replay segment, which other checkpoints may share."""
        return {name: (file.size, file.sha256) for name, file in self.manifest.shared.items()}

    @property
    def segments(self) -> list[str]:
        """The names of the replay segments, oldest rows first."""
        return sorted(self.shared)

    def paths(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of everything it needs, by its path in the store."""
        own = {f"{self.name}/{name}": facts for name, facts in self.files.items()}
        return own | {f"{REPLAY}/{name}": facts for name, facts in self.shared.items()}

    @property
    def size(self) -> int:
        """Bytes of everything it needs."""
        return sum(size for size, _ in self.paths().values())

    def still_there(self) -> bool:
        """Whether its manifest has not been removed meanwhile."""
        return self.store.size(f"{self.name}/{MANIFEST}") is not None

    def verify(self) -> None:
        """Hash every file, a piece at a time; `CheckpointDamaged` for the first that is wrong."""
        self.check_sizes()
        for path, (size, sha256) in self.paths().items():
            digest = hashlib.sha256()
            for piece in self._pieces(path, size):
                digest.update(piece)
            self._compare(path, digest.hexdigest(), sha256)

    def check_sizes(self) -> None:
        """Look whether every file is there in its size; `CheckpointDamaged` for the first that is not."""
        there = {f"{self.name}/{name}": size for name, size in self.store.sizes(self.name).items()}
        if self.shared:
            segments = self.store.sizes(REPLAY)
            there |= {f"{REPLAY}/{name}": size for name, size in segments.items()}
        for path, (size, _) in self.paths().items():
            self._compare_size(path, there.get(path), size)

    def read(self, name: str) -> bytes:
        """The bytes of one file or segment; `CheckpointDamaged` if they are not the manifest's."""
        path = f"{REPLAY if name in self.shared else self.name}/{name}"
        if path not in self.paths():
            raise CheckpointMissing(f"{self.address}: its manifest names no file '{path}'")
        size, expected = self.paths()[path]
        self._compare_size(path, self.store.size(path), size)
        data = b"".join(self._pieces(path, size))
        self._compare(path, hashlib.sha256(data).hexdigest(), expected)
        return data

    def _pieces(self, path: str, size: int) -> Iterator[bytes]:
        try:
            yield from self.store.pieces(path, size)
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


def add_facts(checkpoint: Checkpoint, **facts: Any) -> Checkpoint:
    """Add *facts* to the manifest of *checkpoint*, such as scores that became known later."""
    manifest = Manifest.model_validate({**checkpoint.manifest.facts(), **facts})
    checkpoint.store.write(f"{checkpoint.name}/{MANIFEST}", manifest.to_json())
    return Checkpoint(checkpoint.store, checkpoint.name, manifest)


def list_checkpoints(store: Store) -> list[Checkpoint]:
    """Every checkpoint in *store* that has a readable manifest, oldest first."""
    return list(newest_first(store))[::-1]


def newest_first(store: Store) -> Iterator[Checkpoint]:
    """The same, newest first, each looked for when it is asked for."""
    names = [name for name in store.folders() if STEP.fullmatch(name)]
    for name in sorted(names, key=lambda name: int(name.removeprefix("step-")), reverse=True):
        try:
            yield open_checkpoint(store, name)
        except CheckpointMissing:
            continue  # one that is being written, or removed
        except CheckpointDamaged as error:
            _log.warning("%s; it is left out", error)


def survey(store: Store) -> tuple[list[Checkpoint], dict[str, CheckpointError]]:
    """Every checkpoint in *store*, oldest first, and what the other steps' folders lack, by name."""
    found, others = [], {}
    for name in store.folders():
        if STEP.fullmatch(name):
            try:
                found.append(open_checkpoint(store, name))
            except CheckpointError as error:
                others[name] = error
    return sorted(found, key=lambda checkpoint: checkpoint.global_step), others


def local_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Every checkpoint in the run folder *run_dir*, oldest first."""
    return list_checkpoints(Store(run_dir / FOLDER))


def open_checkpoint(store: Store, name: str) -> Checkpoint:
    """The checkpoint in the folder *name* of *store*; `CheckpointMissing` or `CheckpointDamaged`."""
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
    reason = first["msg"].removeprefix("Value error, ")
    return " ".join(f"{where[:80]!r}: {reason}".split())
