"""An experiment described once: a list of overrides becomes a checked, frozen `Config`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
