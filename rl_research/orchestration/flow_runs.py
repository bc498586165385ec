"""A flow run of this package: the experiment that it runs, the name it shows, the state it ends in."""

import logging
from collections.abc import Sequence
from functools import lru_cache

from prefect import runtime
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.states import Failed

from rl_research.config import Config, Experiment, compose_experiment, refuse_secrets
from rl_research.errors import RLResearchError, RunTakenOver
from rl_research.orchestration.flow_calls import handed_over
from rl_research.system import without_password

_log = logging.getLogger(__name__)
_NOT_IN_NAMES = ("storage.options", "runs_dir=")


@lru_cache(maxsize=1)
def experiment_of(overrides: tuple[str, ...], flow_run_id: str) -> Experiment:
    """Return the experiment that *overrides* describe as the flow run *flow_run_id* trains it.

    Composed once per flow run: for its name, its body and its body's retries; and not at all where the caller
    has handed it over. Raises `ConfigError`.
    """
    handed = handed_over(Experiment)
    experiment = handed if handed and handed.overrides == overrides else compose_experiment(overrides)
    refuse_secrets(overrides)
    return experiment.identified(flow_run_id)


def name_from_overrides() -> str:
    """Return this flow run's name: algorithm, environment, seed, W&B mode, and the overrides."""
    overrides = runtime.flow_run.parameters.get("overrides", ())
    shown = [without_password(word) for word in overrides if not word.lstrip("+").startswith(_NOT_IN_NAMES)]
    return ": ".join(filter(None, [" ".join(facts_from(overrides)), " ".join(shown or ["defaults"])]))[:200]


def facts_from(overrides: Sequence[str]) -> list[str]:
    """Return `experiment_facts` of what *overrides* describe for this flow run; empty for a mistake."""
    try:
        return experiment_facts(experiment_of(tuple(overrides), str(runtime.flow_run.id)).config)
    except RLResearchError:
        return []


def experiment_facts(config: Config) -> list[str]:
    """Return algorithm, environment, seed and W&B mode, as people read them."""
    algorithm, env = config.algorithm.name.upper(), config.env.id
    return [algorithm, env, f"seed {config.experiment.seed}", config.wandb.mode]


def failed_state(error: RLResearchError) -> State[object]:
    """Return the final state of a flow run that the user has to mend; its message is the error's one line.

    In a flow with retries the error is raised, because Prefect retries only what is raised.
    """
    context = FlowRunContext.get()
    if context is not None and context.flow is not None and context.flow.retries:
        raise error
    return Failed(message=str(error), data=error)


def taken_over_state(error: RunTakenOver) -> State[object]:
    """Return the final state of a direct run that another process has taken up.

    The flow run of a deployment ends by `Abort` instead, which tells Prefect nothing: the other process
    speaks for the same flow run.
    """
    if runtime.deployment.id is None:
        return failed_state(error)
    _log.error("%s Prefect is told nothing, for the other one speaks for this flow run.", error)
    raise Abort(str(error))
