"""The import path `rl_research.utils.logger`, and nothing else."""
