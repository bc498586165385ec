from .algorithms import (
    algorithm_class as algorithm_class,
    base_of as base_of,
    constructor_arguments as constructor_arguments,
    is_on_policy as is_on_policy,
    policies as policies,
    takes_masks as takes_masks,
)
from .composition import RUN_DIR as RUN_DIR, plain as plain
from .experiment import (
    Experiment as Experiment,
    check_algorithm as check_algorithm,
    compose_config as compose_config,
    compose_experiment as compose_experiment,
    load_config as load_config,
    load_storage as load_storage,
    overrides_of as overrides_of,
)
from .folders import (
    CONFIG_DIR as CONFIG_DIR,
    CONFIG_DIRS as CONFIG_DIRS,
    choices as choices,
    config_dirs as config_dirs,
    groups as groups,
    origins as origins,
)
from .literal_secrets import (
    hide_secrets as hide_secrets,
    hide_secrets_of as hide_secrets_of,
    refuse_secrets as refuse_secrets,
)
from .messages import did_you_mean as did_you_mean, spelt as spelt
from .overrides import quoted as quoted
from .parts import made as made, name_and_arguments as name_and_arguments
from .plugins import (
    code_of as code_of,
    import_module as import_module,
    load_plugins as load_plugins,
    plugins_of_launcher as plugins_of_launcher,
)
from .registry import register as register
from .schema import (
    Config as Config,
    Section as Section,
    StorageSettings as StorageSettings,
    WandbSettings as WandbSettings,
    settings as settings,
    validated as validated,
)
