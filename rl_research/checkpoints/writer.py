"""Write a checkpoint: whole, or not at all."""

import hashlib
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rl_research.checkpoints.checkpoint import FOLDER, MANIFEST, REPLAY, Checkpoint, folder_name
from rl_research.checkpoints.manifest import FORMAT, Manifest, StoredFile
from rl_research.storage import Store
from rl_research.system import make_durable, raise_if_refused, write_atomically

FORMER = ".former"  # ends the name of a checkpoint that another one at the same step is replacing


def commit(
    run_dir: Path,
    global_step: int,
    files: Mapping[str, bytes],
    facts: Mapping[str, Any],
    *,
    reused: Mapping[str, StoredFile] | None = None,
    segments: Iterable[tuple[str, bytes]] = (),
) -> Checkpoint:
    """Write *files* and their manifest as the checkpoint at *global_step* of the run in *run_dir*.

    *facts* join the manifest; *reused* are the replay segments shared with earlier checkpoints,
    *segments* yields the new ones, one at a time. The folder appears whole, by one rename; the same step
    committed again replaces the former one. Raises `StorageError` when the disk refuses.
    """
    parent = run_dir / FOLDER
    name = folder_name(global_step)
    staging = parent / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        shared = dict(reused or {})
        for stem, data in segments:
            segment = f"{stem}-{hashlib.sha256(data).hexdigest()[:12]}.npz"
            shared[segment] = _write_file(parent / REPLAY / segment, data)
        staging.mkdir(parents=True)
        written = {name: _write_file(staging / name, data) for name, data in files.items()}
        whole = {"format": FORMAT, "global_step": global_step, **facts, "files": written, "shared": shared}
        manifest = Manifest.model_validate(whole)
        write_atomically(staging / MANIFEST, manifest.to_json())
        _replace_folder(staging, parent / name)
    except OSError as error:
        raise_if_refused(error, parent / name)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Checkpoint(Store(parent), name, manifest)


def add_facts(checkpoint: Checkpoint, **facts: Any) -> Checkpoint:
    """Add *facts* to the manifest of *checkpoint*, such as scores that became known later."""
    manifest = Manifest.model_validate({**checkpoint.manifest.facts(), **facts})
    checkpoint.store.write(f"{checkpoint.name}/{MANIFEST}", manifest.to_json())
    return Checkpoint(checkpoint.store, checkpoint.name, manifest)


def _write_file(path: Path, data: bytes) -> StoredFile:
    write_atomically(path, data)
    return StoredFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _replace_folder(staging: Path, final: Path) -> None:
    former = final.with_name(f".{final.name}{FORMER}")
    if final.exists():
        remove_folder(former)
        final.rename(former)
    staging.rename(final)
    make_durable(final.parent)
    remove_folder(former)


def settle_replacements(parent: Path) -> None:
    """Undo a replacement that was cut off between its two renames, and end one that was cut off later."""
    for former in parent.glob(f".step-*{FORMER}"):
        final = former.with_name(former.name.removeprefix(".").removesuffix(FORMER))
        if final.exists() or not (former / MANIFEST).exists():
            remove_folder(former)
        else:
            former.rename(final)


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint's *folder*; first of all it stops being a checkpoint."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
