"""``python -m rl_research`` is ``rl-research``."""

from rl_research.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
