from .callback import BaseCallback as BaseCallback, StepClock as StepClock
from .logged_rows import Logged as Logged
from .logger import ExperimentLogger as ExperimentLogger
from .policy_zip import (
    MODEL as MODEL,
    NORMALIZER as NORMALIZER,
    STATISTICS as STATISTICS,
    policy_files as policy_files,
    restore_statistics as restore_statistics,
)
from .provenance import public as public
from .rows import (
    STEP as STEP,
    ProgressFile as ProgressFile,
    RowWriter as RowWriter,
    numbers as numbers,
    write_row as write_row,
)
from .settings import for_afterword as for_afterword
from .wandb_api import NoAnswer as NoAnswer, WandbApi as WandbApi, api_key as api_key
from .wandb_callback import WandbCallback as WandbCallback
from .wandb_log import (
    Writer as Writer,
    is_damaged as is_damaged,
    logged as logged,
    logged_artifacts as logged_artifacts,
    logs_of as logs_of,
    parsed as parsed,
    records as records,
    row_of as row_of,
)
