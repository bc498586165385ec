from .config import load_config as load_config, register as register
from .runs import list_runs as list_runs
from .tracking import ExperimentLogger as ExperimentLogger
from .training import Policy as Policy, evaluate as evaluate, load_policy as load_policy, train as train

__version__: str
