from .delivery import deliver_runs as deliver_runs
from .eligibility import Policy as Policy, reason_to_skip as reason_to_skip
from .local_runs import (
    LocalRun as LocalRun,
    find as find,
    is_verified as is_verified,
    synced_at as synced_at,
    was_sent as was_sent,
)
from .outcome import EXIT_CODES as EXIT_CODES, Outcome as Outcome, exit_code as exit_code, outcome_of as outcome_of
from .pushing import push as push
from .server import ask_for_run as ask_for_run
from .tries import open_runs as open_runs, sync_runs as sync_runs
