"""Needs of every package: atomic files, locks, retries, processes, signals, secrets, streams, units."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
