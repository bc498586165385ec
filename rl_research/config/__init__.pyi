from .composition import RUN_DIR as RUN_DIR, choices as choices, groups as groups, plain as plain
from .experiment import (
    Config as Config,
    check as check,
    compose as compose,
    load_config as load_config,
    settings as settings,
    validated as validated,
)
from .literal_secrets import checkpoint_out_of_sight as checkpoint_out_of_sight, out_of_sight as out_of_sight
from .messages import did_you_mean as did_you_mean
from .schema import Storage as Storage, Wandb as Wandb
