"""Find flow runs whose process is gone, and schedule again what can go on.

prefect deployment run watchdog/every-5-minutes

How a flow run is found to be dead is said in `rl_research/orchestration/watchdog.py`. Training and studies go
on from what they have committed, after a delay that doubles as long as they make no progress, at most five
times at the same step.
"""

from datetime import timedelta

from prefect import flow, get_client, get_run_logger

from rl_research.orchestration import repair_flow_runs


@flow(name="watchdog", log_prints=False)
def watchdog(silence: float = 90.0, second_look: float = 40.0) -> list[str]:
    """Look after every flow run of this package's deployments; return what was done, a line each.

    A flow run is lost that sends no heartbeat for *silence* seconds, which should be three heartbeats
    (PREFECT_FLOWS_HEARTBEAT_FREQUENCY) or more, and that is seen lost again *second_look* seconds later. That
    should be more than a heartbeat, so that nobody is lost because the API was away.
    """
    with get_client(sync_client=True) as client:
        done = repair_flow_runs(client, timedelta(seconds=silence), second_look)
    for line in done:
        get_run_logger().warning("%s", line)
    return done
