"""Checkpoints brought to their storage: the `queue` beside training, each `delivery`, and `leftovers`."""
