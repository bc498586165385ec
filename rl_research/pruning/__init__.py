"""Pruning of folders of runs and of stores: what may be removed, and how.

Three things go: checkpoints that a run's own retention does not keep, orphans (files of no manifest that
are older than a grace period), and, under a disk budget, the heavy parts of finished runs that lie
elsewhere, too. A run that a process has open is left alone, and so is what no rule here knows.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
