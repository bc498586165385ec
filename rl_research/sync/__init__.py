"""Offline runs to Weights & Biases, each row once.

`find` lists the runs below a folder, `sync_runs` syncs them and returns the outcome of each from
evidence (it alone imports wandb), `is_verified` says whether a run's local copy may go. A run's ledger
stands beside its segments; see docs/sync.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
