from .deadline import Attempt as Attempt, lasting as lasting
from .files import (
    make_durable as make_durable,
    raise_if_refused as raise_if_refused,
    replacing as replacing,
    sha256 as sha256,
    unused as unused,
    write_atomically as write_atomically,
    write_text as write_text,
)
from .secrets import (
    MASK as MASK,
    is_secret_option as is_secret_option,
    masked as masked,
    names_a_secret as names_a_secret,
    password_in as password_in,
    without_password as without_password,
)
from .signals import Overdue as Overdue, StopRequest as StopRequest, listening as listening
from .units import (
    parsed_size as parsed_size,
    parsed_time as parsed_time,
    shown_size as shown_size,
    shown_time as shown_time,
)
