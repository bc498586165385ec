from .clients import crosses_network as crosses_network
from .lease import (
    FILE as FILE,
    Share as Share,
    StoreLease as StoreLease,
    holder_in as holder_in,
    is_gone as is_gone,
    is_on_this_machine as is_on_this_machine,
    lease_in as lease_in,
    named as named,
    new_holder as new_holder,
    read_lease as read_lease,
    write_lease as write_lease,
)
from .store import TIMEOUT as TIMEOUT, Entry as Entry, Store as Store, around_path as around_path, below as below
from .transient import is_transient as is_transient
from .unfinished_uploads import Unfinished as Unfinished
