"""Write a checkpoint: whole, or not at all."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rl_research.checkpoints.checkpoint import FOLDER, MANIFEST, REPLAY, Checkpoint, folder_name
from rl_research.checkpoints.manifest import FORMAT, Manifest
from rl_research.storage import Store
from rl_research.system import make_durable, raise_if_refused, write_atomically

FORMER = ".former"  # ends the name of a checkpoint that another one at the same step is replacing


def commit(
    run_dir: Path,
    global_step: int,
    files: Mapping[str, bytes],
    facts: Mapping[str, Any],
    *,
    reused: Mapping[str, tuple[int, str]] | None = None,
    segments: Iterable[tuple[str, bytes]] = (),
) -> Checkpoint:
    """Write *files* and their manifest as the checkpoint at *global_step* of the run in *run_dir*.

    *facts* join the manifest; *reused* names the replay segments shared with earlier checkpoints,
    *segments* yields the new ones, one at a time. The folder appears whole, by one rename; the same step
    committed again replaces the former one. Raises `StorageError` when the disk refuses.
    """
    parent = run_dir / FOLDER
    name = folder_name(global_step)
    staging = parent / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        shared = {name: _entry(size, sha256) for name, (size, sha256) in (reused or {}).items()}
        shared |= dict(_written_segments(parent / REPLAY, segments))
        staging.mkdir(parents=True)
        manifest = Manifest.model_validate(
            {
                "format": FORMAT,
                "global_step": global_step,
                **facts,
                "files": {n: _write_file(staging / n, data) for n, data in files.items()},
                "shared": shared,
            }
        )
        write_atomically(staging / MANIFEST, manifest.to_json())
        _replace_folder(staging, parent / name)
    except OSError as error:
        raise_if_refused(error, parent / name)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Checkpoint(Store(parent), name, manifest)


def _written_segments(
    folder: Path, segments: Iterable[tuple[str, bytes]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for stem, data in segments:
        name = f"{stem}-{hashlib.sha256(data).hexdigest()[:12]}.npz"
        yield name, _write_file(folder / name, data)


def _write_file(path: Path, data: bytes) -> dict[str, Any]:
    write_atomically(path, data)
    return _entry(len(data), hashlib.sha256(data).hexdigest())


def _entry(size: int, sha256: str) -> dict[str, Any]:
    return {"size": size, "sha256": sha256}


def _replace_folder(staging: Path, final: Path) -> None:
    former = final.with_name(f".{final.name}{FORMER}")
    if final.exists():
        remove_folder(former)
        final.rename(former)
    staging.rename(final)
    make_durable(final.parent)
    remove_folder(former)


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint's *folder*; first of all it stops being a checkpoint."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
