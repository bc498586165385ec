from .intervals import Floats as Floats, Interval as Interval, bootstrap_interval as bootstrap_interval, iqm as iqm
