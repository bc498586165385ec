from .checkpoint import (
    FOLDER as FOLDER,
    MANIFEST as MANIFEST,
    REPLAY as REPLAY,
    STEP as STEP,
    Checkpoint as Checkpoint,
    add_facts as add_facts,
    folder_name as folder_name,
    list_checkpoints as list_checkpoints,
    local_checkpoints as local_checkpoints,
    newest_first as newest_first,
    open_checkpoint as open_checkpoint,
    survey as survey,
)
from .listing import listed as listed
from .manifest import Manifest as Manifest, Scores as Scores
from .references import (
    find as find,
    is_url as is_url,
    places_of as places_of,
    storage_url_of as storage_url_of,
)
from .retention import (
    kept as kept,
    needed_segments as needed_segments,
    prune as prune,
    prune_store as prune_store,
    remove as remove,
    retention_of as retention_of,
    sweep as sweep,
)
from .transfer import (
    download as download,
    is_in as is_in,
    remote_store as remote_store,
    store_of as store_of,
    upload as upload,
)
from .writer import commit as commit
