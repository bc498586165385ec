from .config import load_config as load_config, register as register
from .tracking import ExperimentLogger as ExperimentLogger

__version__: str
