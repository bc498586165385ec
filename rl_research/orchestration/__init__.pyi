from .artifacts import (
    Progress as Progress,
    linked_to_flow_run as linked_to_flow_run,
    publish_checkpoint as publish_checkpoint,
    publish_pruned as publish_pruned,
    publish_study as publish_study,
    publish_summary as publish_summary,
    publish_sync as publish_sync,
    publish_synced_link as publish_synced_link,
)
from .deployment_file import parsed as parsed, read as read
from .deployments import deploy as deploy
from .embedded_api import EmbeddedAPI as EmbeddedAPI, check_settings as check_settings, embed_api as embed_api
from .flow_calls import call_flow as call_flow, handed_over as handed_over
from .flow_runs import (
    experiment_of as experiment_of,
    facts_from as facts_from,
    failed_state as failed_state,
    name_from_overrides as name_from_overrides,
    taken_over_state as taken_over_state,
)
from .local_server import (
    LocalServer as LocalServer,
    answers as answers,
    ask_health as ask_health,
    running_url as running_url,
)
from .recovery import reschedule_if_preempted as reschedule_if_preempted, stopped_state as stopped_state
from .retry_policies import NO_RETRIES as NO_RETRIES, RETRY_TRANSIENT as RETRY_TRANSIENT, retry_for as retry_for
from .upload_tasks import (
    Delivery as Delivery,
    UploadByTask as UploadByTask,
    publish_deliveries as publish_deliveries,
    upload_pending as upload_pending,
)
from .watchdog import repair_flow_runs as repair_flow_runs
from .worker import work_until_stopped as work_until_stopped
