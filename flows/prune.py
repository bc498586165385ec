"""Remove what no run needs, from folders of runs and from stores.

rl-research prune runs s3://bucket/runs --budget 50GB
prefect deployment run prune/daily -p 'places=["runs","s3://bucket/runs"]' -p budget=50GB
"""

from collections.abc import Sequence
from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State

from rl_research.config import load_storage, refuse_secrets
from rl_research.errors import RLResearchError, StorageError
from rl_research.orchestration import RETRY_TRANSIENT, failed_state, publish_pruned
from rl_research.pruning import Pruned, Rules, prune_place
from rl_research.system import parsed_size, parsed_time


@flow(name="prune", flow_run_name="prune {places}")
def prune(
    places: Sequence[str] = ("runs",),
    budget: str | None = None,
    grace: str = "24h",
    older_than: str = "7d",
    local_checkpoints: bool = False,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any] | State[object]:
    """Prune each of *places* by the same rules and show what went.

    *overrides* are ``storage.options.KEY=VALUE`` for their file systems, no secrets among them.
    It fails, after all else is done, where something could not be removed.
    """
    try:
        refuse_secrets(overrides, *places)
        rules = Rules(
            grace=parsed_time("grace", grace),
            budget=None if budget is None else parsed_size("budget", budget),
            older_than=parsed_time("older_than", older_than),
            local_checkpoints=local_checkpoints,
            dry_run=dry_run,
            options=load_storage(overrides).options,
        )
        found = [prune_one_place(place, rules) for place in places]
        publish_pruned(found, dry_run)
        if refused := [line for one in found for line in one.refused]:
            raise StorageError("; ".join(refused))
    except RLResearchError as error:
        return failed_state(error)
    total = sum(one.bytes_removed for one in found)
    return {"bytes_removed": total, "places": [one.described() for one in found]}


@task(task_run_name="prune {place}", **RETRY_TRANSIENT)
def prune_one_place(place: str, rules: Rules) -> Pruned:
    """Prune *place*; transient failures are retried."""
    return prune_place(place, rules)
