"""Tracking of a run: `ExperimentLogger`, the W&B run, metrics, media, rows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
