from .artifacts import (
    Progress as Progress,
    beside as beside,
    introduce as introduce,
    publish_checkpoint as publish_checkpoint,
    publish_deliveries as publish_deliveries,
    publish_pruned as publish_pruned,
    publish_study as publish_study,
    publish_summary as publish_summary,
    publish_sync as publish_sync,
    publish_synced_link as publish_synced_link,
)
from .deployment_file import read as read
from .deployments import deploy as deploy, serve as serve
from .embedded_api import EmbeddedAPI as EmbeddedAPI
from .flow_calls import call_flow as call_flow
from .local_server import LocalServer as LocalServer, answers as answers, running_url as running_url
from .upload_tasks import ByTask as ByTask, upload_checkpoint as upload_checkpoint
