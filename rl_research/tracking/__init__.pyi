from .logger import ExperimentLogger as ExperimentLogger
from .media import video_frames as video_frames
from .provenance import (
    current_flow_run as current_flow_run,
    git_state as git_state,
    package_versions as package_versions,
    public as public,
)
from .rows import (
    STEP as STEP,
    ProgressFile as ProgressFile,
    RowWriter as RowWriter,
    values_of_row as values_of_row,
    write_row as write_row,
)
from .saved_policy import (
    MODEL as MODEL,
    NORMALIZER as NORMALIZER,
    STATISTICS as STATISTICS,
    policy_files as policy_files,
    restore_statistics as restore_statistics,
)
from .sb3_callbacks import BaseCallback as BaseCallback, StepClock as StepClock, WandbCallback as WandbCallback
from .settings import resolve_settings as resolve_settings, settings_to_reopen as settings_to_reopen
from .wandb_api import (
    NoAnswer as NoAnswer,
    Refused as Refused,
    RunThere as RunThere,
    Unreachable as Unreachable,
    WandbApi as WandbApi,
)
from .wandb_log import (
    Logged as Logged,
    LogWriter as LogWriter,
    is_damaged as is_damaged,
    logged_artifacts as logged_artifacts,
    logs_of as logs_of,
    read_logged as read_logged,
    read_records as read_records,
    row_in as row_in,
)
from .wandb_private import (
    SERVICE as SERVICE,
    Record as Record,
    SyncCommand as SyncCommand,
    SyncLog as SyncLog,
    parse_record as parse_record,
)
