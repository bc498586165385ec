"""What any room needs: atomic files, signals and deadlines, processes, secrets, units."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
