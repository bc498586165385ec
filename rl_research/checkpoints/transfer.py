"""Checkpoints to and from another store."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rl_research.checkpoints.checkpoint import FOLDER, INTENT, MANIFEST, REPLAY, Checkpoint, read_manifest, sizes_in
from rl_research.config import Config
from rl_research.errors import CheckpointDamaged
from rl_research.storage import TIMEOUT, Store, below, repeats_logged
from rl_research.system import make_durable, sha256


def upload(checkpoint: Checkpoint, store: Store, confirm: Callable[[], None] = lambda: None) -> Checkpoint:
    """Copy a local *checkpoint* to *store*: files first, then the manifest.

    *confirm* is called before the first change and before the manifest; it raises where this process
    may not write there (any more).

    A retry sends only what is missing. Where *store* has other files at this step, its manifest goes
    first, so that no reader ever sees a manifest beside files that are not its own.
    """
    with repeats_logged(f"upload of step {checkpoint.global_step}"):
        return _upload(checkpoint, store, confirm)


def _upload(checkpoint: Checkpoint, store: Store, confirm: Callable[[], None]) -> Checkpoint:
    confirm()
    text = checkpoint.manifest.to_json()
    manifest, intent = f"{checkpoint.name}/{MANIFEST}", f"{checkpoint.name}/{INTENT}"
    theirs = read_manifest(store, manifest)
    same_files = theirs is not None and theirs.files == checkpoint.manifest.files
    continued = same_files or _content(store, intent) == text
    if not continued:
        store.remove(manifest)
    if not same_files:
        store.write(intent, text)  # anew in a retry, too: pruning spares what a young one names
    folders = [checkpoint.name] if continued else []
    folders += [REPLAY] if checkpoint.segments else []  # a segment's name holds its hash
    there = sizes_in(store, folders)
    missing = [path for path, (size, _) in checkpoint.paths().items() if there.get(path) != size]
    store.put_files({path: Path(checkpoint.store.path(path)) for path in missing})
    confirm()
    store.write(manifest, text)
    store.remove(intent)
    return Checkpoint(store, checkpoint.name, checkpoint.manifest)


def is_in(checkpoint: Checkpoint, store: Store) -> bool:
    """Return whether *store* has this very checkpoint, with every word of its manifest."""
    return _content(store, f"{checkpoint.name}/{MANIFEST}") == checkpoint.manifest.to_json()


def download(checkpoint: Checkpoint, run_dir: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Checkpoint:
    """Copy *checkpoint* into the run folder *run_dir*, verified; the manifest last.

    What is there already is not fetched again, and a file that was cut off goes on where it stopped.
    *on_bytes* is called with the number of bytes that have arrived.
    """
    store = Store(run_dir / FOLDER)
    for path, (size, expected) in checkpoint.paths().items():
        target = run_dir / FOLDER / path
        if not (store.size(path) == size and sha256(target) == expected):
            part = target.with_name(f".{target.name}.{expected[:12]}.tmp")
            with repeats_logged(f"download of {path}"):
                _fetch(checkpoint.store, path, part, size, expected)
            make_durable(part)
            part.replace(target)
            make_durable(target.parent)
        on_bytes(size)
    store.write(f"{checkpoint.name}/{MANIFEST}", checkpoint.manifest.to_json())
    return Checkpoint(store, checkpoint.name, checkpoint.manifest)


def _fetch(source: Store, path: str, part: Path, size: int, expected: str) -> None:
    """Make *part* hold *path*, going on where an earlier try has stopped."""
    there = part.stat().st_size if part.exists() else 0
    if 0 < there < size:
        with part.open("ab") as out:
            for piece in source.pieces(path, size, there):
                out.write(piece)
        if sha256(part) == expected:
            return
    if source.get(path, part) != expected:
        part.unlink()
        raise CheckpointDamaged(f"{source.address(path)}: its SHA-256 is not the manifest's")


def remote_store(url: str, options: Mapping[str, Any], run_id: str, timeout: float = TIMEOUT) -> Store:
    """Return where the run *run_id* keeps its checkpoints below *url*."""
    return Store(below(url, f"{run_id}/{FOLDER}"), options, timeout)


def store_of(config: Config) -> Store | None:
    """Return where the run that *config* names keeps its checkpoints besides its folder, if anywhere."""
    section = config.storage
    if section.url is None or config.run_id is None:
        return None
    return remote_store(section.url, section.options, config.run_id, section.timeout)


def _content(store: Store, name: str) -> bytes | None:
    return None if store.size(name) is None else store.read(name)
