"""Train an experiment under several settings and seeds, and compare them over the seeds.

rl-research study my_study experiment=cartpole_ppo --seeds 0,1,2
prefect deployment run study/weekly-benchmark
"""

# No `from __future__ import annotations`: see flows/train.py.

from collections.abc import Sequence
from typing import Any

from prefect import flow, get_client, runtime
from prefect.client.schemas.objects import State
from prefect.states import Failed

from rl_research.config import refuse_secrets
from rl_research.errors import Interrupted, RLResearchError
from rl_research.orchestration import answers, pipeline, publish_study, recovery
from rl_research.report import write_study
from rl_research.studies import plan_study, run_members, study_name, study_result
from rl_research.system import listening


def _named() -> str:
    given = runtime.flow_run.parameters
    facts = pipeline.experiment_in(given.get("overrides") or ())[:2]
    return f"{given['name']}: {' '.join(facts)} × {len(given['seeds'])} seeds"


@flow(name="study", flow_run_name=_named, on_crashed=[recovery.reschedule_if_preempted])
def study(
    name: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[Sequence[str]] = (),
    at_a_time: int = 1,
    afresh: bool = False,
) -> dict[str, Any] | State[Any]:
    """Run each list of *grid* on top of *overrides* with each of *seeds*, *at_a_time* processes at once.

    A member that is finished is not trained again: not when this flow run goes on after a stop, and not
    when the study of that name is started once more; *afresh* makes it another study for each flow run.
    Members that fail are named in the state and stop nobody else.
    """
    with get_client(sync_client=True) as client:
        api = str(client.api_url)
    known = study_name(name, afresh, str(runtime.flow_run.id))
    return pipeline.told(outcome_of(known, overrides, seeds, grid, at_a_time, api))


def outcome_of(
    name: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[Sequence[str]],
    at_a_time: int,
    api: str | None,
) -> dict[str, Any] | State[Any]:
    """Run the study with members that use the Prefect API *api* while it answers, else one of their own."""
    try:
        refuse_secrets([*overrides, *(word for words in grid for word in words)])
        planned = plan_study(name, overrides, seeds, grid)
        with listening() as stop:
            run_members(planned, stop, at_a_time, lambda: api if api and answers(api) else None)
    except Interrupted as interruption:
        return recovery.stopped(interruption, planned.steps)
    except RLResearchError as error:
        return pipeline.refused(error)
    result = study_result(planned)
    write_study(result)
    if api is not None:
        publish_study(result)
    if failed := result["failed"]:
        said = f"{len(failed)} of {len(planned.members)} members are not finished: {', '.join(failed)}"
        return Failed(message=f"{said}; their logs are in {result['folder']}/logs", data=result)
    return result
