from .checkpoint_callback import CheckpointCallback as CheckpointCallback
from .evaluation import Scores as Scores
from .evaluation_callback import EvalCallback as EvalCallback
from .log_rows import LogRows as LogRows
from .preflight_checks import preflight as preflight
from .resume import finished_result as finished_result, trained_steps as trained_steps
from .verification import verify as verify
from .video_callback import VideoRecorderCallback as VideoRecorderCallback
