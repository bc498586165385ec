"""An experiment's description: from a list of overrides to values that have been checked.

`rl_research.config` is the door. `overrides` reads the list, `composition` composes it with Hydra, `sections`
holds every setting with its bounds, `algorithms` checks hyperparameters against `signatures` and `batches`.
"""
