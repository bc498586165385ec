"""Train an experiment under several settings and seeds, and compare them over the seeds.

rl-research study my_study experiment=cartpole_ppo --seeds 0,1,2
prefect deployment run study/weekly-benchmark
"""

from collections.abc import Sequence
from typing import Any

from prefect import flow, get_client, runtime
from prefect.client.schemas.objects import State

from rl_research import orchestration
from rl_research.config import refuse_secrets
from rl_research.errors import Interrupted, RLResearchError, StudyUnfinished
from rl_research.report import write_study
from rl_research.studies import Study, plan_study, run_members, study_name, study_result
from rl_research.system import listening


def _name() -> str:
    given = runtime.flow_run.parameters
    facts = orchestration.facts_from(given.get("overrides") or ())[:2]
    return f"{given['name']}: {' '.join(facts)} × {len(given['seeds'])} seeds"


@flow(name="study", flow_run_name=_name, on_crashed=[orchestration.reschedule_if_preempted])
def study(
    name: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[Sequence[str]] = (),
    at_a_time: int = 1,
    afresh: bool = False,
) -> dict[str, Any] | State[object]:
    """Run each list of *grid* on top of *overrides* with each of *seeds*, *at_a_time* processes at once.

    A member that is finished is not trained again: not when this flow run goes on after a stop, and not
    when the study of that name is started once more; *afresh* makes it another study for each flow run.
    Members that fail are named in the state and stop nobody else.
    """
    try:
        refuse_secrets([*overrides, *(word for setting in grid for word in setting)])
        known = study_name(name, afresh, str(runtime.flow_run.id))
        planned = orchestration.handed_over(Study)
        if planned is None or planned.name != known:
            planned = plan_study(known, overrides, seeds, grid)
    except RLResearchError as error:
        return orchestration.failed_state(error)
    with get_client(sync_client=True) as client:
        api = str(client.api_url)
    return run_study(planned, at_a_time, api)


def run_study(planned: Study, at_a_time: int, api: str | None) -> dict[str, Any] | State[object]:
    """Run the study with members that use the Prefect API *api* while it answers, else one of their own."""
    try:
        with listening() as stop:
            run_members(planned, stop, at_a_time, lambda: api if api and orchestration.answers(api) else None)
    except Interrupted as interruption:
        return orchestration.stopped_state(interruption, planned.steps)
    except RLResearchError as error:
        return orchestration.failed_state(error)
    result = study_result(planned)
    write_study(result)
    if api is not None:
        orchestration.publish_study(result)
    if failed := result["failed"]:
        unfinished = f"{len(failed)} of {len(planned.members)} members are not finished"
        ends = [f"  {run_id}: {end}" for run_id, end in result["last_lines"].items()]
        lines = [f"{unfinished}; their logs are in {result['folder']}/logs", *ends]
        return orchestration.failed_state(StudyUnfinished("\n".join(lines), result))
    return result
