from .composition import (
    CONFIG_DIR as CONFIG_DIR,
    RUN_DIR as RUN_DIR,
    choices as choices,
    groups as groups,
    plain as plain,
)
from .experiment import (
    Config as Config,
    Experiment as Experiment,
    check as check,
    compose as compose,
    compose_experiment as compose_experiment,
    load_config as load_config,
    settings as settings,
    validated as validated,
)
from .literal_secrets import checkpoint_out_of_sight as checkpoint_out_of_sight, out_of_sight as out_of_sight
from .messages import did_you_mean as did_you_mean
from .schema import (
    CheckpointSettings as CheckpointSettings,
    StorageSettings as StorageSettings,
    WandbSettings as WandbSettings,
)
