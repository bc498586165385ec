from .clients import crosses_network as crosses_network
from .hiccups import repeats_logged as repeats_logged
from .lease import (
    FILE as FILE,
    Lease as Lease,
    RunLease as RunLease,
    Share as Share,
    holder_in as holder_in,
    lease_in as lease_in,
)
from .store import TIMEOUT as TIMEOUT, Entry as Entry, Store as Store, around_path as around_path, below as below
from .transient import is_transient as is_transient
