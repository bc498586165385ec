"""Commit, find, verify and upload checkpoints.

A checkpoint is its manifest: a folder ``step-000025000/`` of files and a ``manifest.json`` that names
each with its size and SHA-256. The manifest is written last, so that without it there is no checkpoint,
and with it the checkpoint is whole. Readers trust manifests only and verify what they read.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
