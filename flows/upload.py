"""Bring to their storage the checkpoints that runs have left behind in their folders, and tell W&B.

prefect deployment run upload/hourly -p runs_dir=runs
"""

from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State

from rl_research.errors import StorageError
from rl_research.orchestration import Delivery, failed_state, publish_deliveries, upload_pending
from rl_research.uploads import runs_with_storage


@flow(name="upload", flow_run_name="{runs_dir}")
def upload(runs_dir: str = "runs") -> list[Delivery] | State[object]:
    """Deliver what the runs below *runs_dir* have not brought to their ``storage.url``.

    Where that is, each run folder's own ``config.yaml`` says (a relative path is taken from the working
    folder); credentials come from the environment. The W&B run of a run that has ended is told of it.
    Runs that are open are left to themselves. What cannot be delivered or told ends the flow run as
    `Failed` when everything else has been; the next round tries again.
    """
    deliveries: list[Delivery] = []
    silent: set[str | None] = set()  # stores that did not answer are asked once per round
    for storage in runs_with_storage(Path(runs_dir)):
        if (url := storage.config.storage.url) not in silent:
            found = upload_pending(storage)
            deliveries += found
            if any(delivery.store_is_silent for delivery in found):
                silent.add(url)
    if deliveries:
        publish_deliveries(deliveries)
    if left := [delivery for delivery in deliveries if not delivery.is_done]:
        said = "; ".join(f"{delivery.run_id}: {delivery.outcome}" for delivery in left[:3])
        return failed_state(StorageError(f"{len(left)} of {len(deliveries)} are left: {said}"))
    return deliveries
