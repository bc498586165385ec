"""Bytes to and from any fsspec URL, what its failures mean, and the lease of a store."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
