from .callbacks import (
    CheckpointCallback as CheckpointCallback,
    EvalCallback as EvalCallback,
    LogRows as LogRows,
    VideoRecorderCallback as VideoRecorderCallback,
)
from .evaluation import evaluate_checkpoint as evaluate_checkpoint
from .export import FORMATS as FORMATS, OPSET as OPSET, export_policy as export_policy
from .library import Policy as Policy, evaluate as evaluate, load_policy as load_policy, train as train
from .preparation import Prepared as Prepared, preflight as preflight
from .resume import (
    ResumePoint as ResumePoint,
    find_resume_point as find_resume_point,
    finished_result as finished_result,
    trained_steps as trained_steps,
)
from .stages import (
    announce_checkpoint as announce_checkpoint,
    film_checkpoint as film_checkpoint,
    report_run as report_run,
    run_all_stages as run_all_stages,
    score_checkpoint as score_checkpoint,
    with_restarts as with_restarts,
)
from .trainer import train_run as train_run
from .verification import verify as verify
