"""Checkpoints on their way to storage: beside training, and after it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
