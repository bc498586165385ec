"""Commit, find, verify and upload checkpoints.

A checkpoint is its manifest: a folder ``step-000025000/`` of files and a ``manifest.json`` that names
each with its size and SHA-256. The manifest is written last, so that without it there is no checkpoint,
and with it the checkpoint is whole. Readers trust manifests only and verify what they read.
"""

from rl_research.checkpoints.commit import commit
from rl_research.checkpoints.manifest import (
    FOLDER,
    FORMAT,
    MANIFEST,
    REPLAY,
    Checkpoint,
    add_facts,
    folder_name,
    list_checkpoints,
    local_checkpoints,
    newest_first,
    open_checkpoint,
)
from rl_research.checkpoints.references import find, places_of
from rl_research.checkpoints.retention import kept, prune, prune_store, retention_of, sweep
from rl_research.checkpoints.transfer import (
    download,
    is_in,
    remote_store,
    storage_among,
    store_of,
    upload,
)

__all__ = [
    "FOLDER",
    "FORMAT",
    "MANIFEST",
    "REPLAY",
    "Checkpoint",
    "add_facts",
    "commit",
    "download",
    "find",
    "folder_name",
    "is_in",
    "kept",
    "list_checkpoints",
    "local_checkpoints",
    "newest_first",
    "open_checkpoint",
    "places_of",
    "prune",
    "prune_store",
    "remote_store",
    "retention_of",
    "storage_among",
    "store_of",
    "sweep",
    "upload",
]
