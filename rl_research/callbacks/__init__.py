"""SB3 callbacks that count in environment steps and leave training's random state alone.

They stand in for the callbacks of the same names in Stable-Baselines3 and W&B and take their arguments.
Unlike SB3's, a frequency means environment steps, whatever the number of environments.
"""

from rl_research.callbacks.base import BaseCallback, StepClock
from rl_research.callbacks.checkpoint import CheckpointCallback
from rl_research.callbacks.evaluation import EvalCallback
from rl_research.callbacks.metrics import WandbCallback
from rl_research.callbacks.rows import LogRows
from rl_research.callbacks.video import VideoRecorderCallback

__all__ = [
    "BaseCallback",
    "CheckpointCallback",
    "EvalCallback",
    "LogRows",
    "StepClock",
    "VideoRecorderCallback",
    "WandbCallback",
]
