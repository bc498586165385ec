"""Settings × seeds as one object: plan them, run what is missing, compare the scores."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
