from .checkpoint import (
    FOLDER as FOLDER,
    MANIFEST as MANIFEST,
    REPLAY as REPLAY,
    STEP as STEP,
    Checkpoint as Checkpoint,
    folder_name as folder_name,
    list_checkpoints as list_checkpoints,
    local_checkpoints as local_checkpoints,
    open_checkpoint as open_checkpoint,
    survey as survey,
)
from .listing import Listed as Listed, list_folders as list_folders
from .manifest import Manifest as Manifest, Scores as Scores
from .references import (
    find as find,
    find_in_storage as find_in_storage,
    is_url as is_url,
    places_of as places_of,
    storage_url_of as storage_url_of,
)
from .retention import (
    Retention as Retention,
    needed_segments as needed_segments,
    prune as prune,
    prune_store as prune_store,
    remove as remove,
    sweep as sweep,
)
from .transfer import (
    download as download,
    is_in as is_in,
    remote_store as remote_store,
    store_of as store_of,
    upload as upload,
)
from .writer import add_facts as add_facts, commit as commit
