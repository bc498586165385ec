from .deadline import Attempt as Attempt, countdown as countdown
from .files import (
    expanded as expanded,
    make_durable as make_durable,
    raise_if_refused as raise_if_refused,
    replacing as replacing,
    sha256 as sha256,
    unused as unused,
    write_atomically as write_atomically,
)
from .locks import Locked as Locked, lock_holder as lock_holder, locked as locked, try_lock as try_lock
from .processes import (
    ending_with_us as ending_with_us,
    living_processes as living_processes,
    machine_id as machine_id,
    started_at as started_at,
    when_parent_ends as when_parent_ends,
    when_process_ends as when_process_ends,
)
from .retry import pause_after as pause_after, retry_async as retry_async, retry_call as retry_call
from .secrets import (
    MASK as MASK,
    is_secret_option as is_secret_option,
    masked as masked,
    names_a_secret as names_a_secret,
    password_in as password_in,
    without_password as without_password,
)
from .signals import Overdue as Overdue, StopRequest as StopRequest, listening as listening
from .streams import keep_streams as keep_streams
from .units import (
    parsed_size as parsed_size,
    parsed_time as parsed_time,
    shown_size as shown_size,
    shown_time as shown_time,
)
