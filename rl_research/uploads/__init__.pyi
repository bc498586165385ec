from .announcement import (
    announce as announce,
    announce_late as announce_late,
    checkpoint_facts as checkpoint_facts,
    unannounced as unannounced,
    upload_and_announce as upload_and_announce,
)
from .pending import (
    leased_for_upload as leased_for_upload,
    pending_checkpoints as pending_checkpoints,
    record_uploads as record_uploads,
    runs_with_storage as runs_with_storage,
)
from .queue import (
    TooLate as TooLate,
    Upload as Upload,
    UploadQueue as UploadQueue,
    background_uploads as background_uploads,
)
from .run_storage import RunStorage as RunStorage
