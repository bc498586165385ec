from .delivery import sync_runs as sync_runs
from .local_runs import (
    LocalRun as LocalRun,
    Policy as Policy,
    find as find,
    is_verified as is_verified,
    open_runs as open_runs,
    reason_to_skip as reason_to_skip,
    was_sent as was_sent,
)
from .outcome import Outcome as Outcome, Verdict as Verdict, exit_code as exit_code
from .pushing import push as push
