from .delivery import facts_of as facts_of
from .queue import TooLate as TooLate, Upload as Upload, Uploads as Uploads, uploads_of as uploads_of
from .run_storage import Home as Home
