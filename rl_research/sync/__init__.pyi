from .arrived import is_verified as is_verified, synced_at as synced_at, was_sent as was_sent
from .choosing import Policy as Policy, reason_not_to_try as reason_not_to_try
from .delivery import deliver as deliver
from .finding import LocalRun as LocalRun, find as find
from .outcome import (
    EXIT_CODES as EXIT_CODES,
    Outcome as Outcome,
    exit_code as exit_code,
    outcome_of as outcome_of,
)
from .pushing import push as push
from .server import ask_for_run as ask_for_run
