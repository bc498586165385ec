from .algorithms import (
    ON_POLICY as ON_POLICY,
    algorithm_class as algorithm_class,
    constructor_arguments as constructor_arguments,
)
from .composition import (
    CONFIG_DIR as CONFIG_DIR,
    RUN_DIR as RUN_DIR,
    choices as choices,
    groups as groups,
    plain as plain,
)
from .experiment import (
    Experiment as Experiment,
    check_algorithm as check_algorithm,
    compose_config as compose_config,
    compose_experiment as compose_experiment,
    load_config as load_config,
    load_storage as load_storage,
)
from .literal_secrets import (
    hide_secrets as hide_secrets,
    hide_secrets_of as hide_secrets_of,
    refuse_secrets as refuse_secrets,
)
from .messages import did_you_mean as did_you_mean, spelt as spelt
from .schema import (
    Config as Config,
    Section as Section,
    StorageSettings as StorageSettings,
    WandbSettings as WandbSettings,
    settings as settings,
    validated as validated,
)
