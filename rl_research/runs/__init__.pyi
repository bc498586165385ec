from .identity import check_same_experiment as check_same_experiment
from .lease import (
    DELIVERY as DELIVERY,
    LEASE as LEASE,
    holder_of as holder_of,
    leased_folder as leased_folder,
    stored_lease as stored_lease,
)
from .record import (
    DESCRIPTION as DESCRIPTION,
    PROGRESS as PROGRESS,
    RECORD as RECORD,
    SCORES as SCORES,
    is_of_flow_run as is_of_flow_run,
    left_of as left_of,
    read_record as read_record,
    result_of as result_of,
)
from .run import (
    Run as Run,
    make_folder as make_folder,
    manifest_facts as manifest_facts,
    open_run as open_run,
    unfinished_files as unfinished_files,
)
