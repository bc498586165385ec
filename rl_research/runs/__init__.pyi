from .description import check_same_experiment as check_same_experiment, read_description as read_description
from .lease import (
    FOR_UPLOAD as FOR_UPLOAD,
    LEASE as LEASE,
    holder_of as holder_of,
    leased_folder as leased_folder,
    stored_lease as stored_lease,
)
from .listing import list_runs as list_runs
from .record import (
    DESCRIPTION as DESCRIPTION,
    PROGRESS as PROGRESS,
    RECORD as RECORD,
    SCORES as SCORES,
    PruneRecord as PruneRecord,
    RunRecord as RunRecord,
    read_record as read_record,
)
from .run import Run as Run, make_folder as make_folder, open_run as open_run, unfinished_files as unfinished_files
