"""SB3 callbacks that count in environment steps and leave training's random state alone.

They stand in for the callbacks of the same names in Stable-Baselines3 and W&B and take their arguments.
Unlike SB3's, a frequency means environment steps, whatever the number of environments.
"""

from rl_research.tracking import BaseCallback, StepClock, WandbCallback
from rl_research.training import CheckpointCallback, EvalCallback, LogRows, VideoRecorderCallback

__all__ = [
    "BaseCallback",
    "CheckpointCallback",
    "EvalCallback",
    "LogRows",
    "StepClock",
    "VideoRecorderCallback",
    "WandbCallback",
]
