"""The flows as the command line calls them: each comes to its end, whatever becomes of Prefect's API.

An API that does not come up, or goes away in the middle, costs a line in the log and the flow run's page.
Each command imports its own flow only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rl_research.orchestration import EmbeddedAPI, call_flow, pipeline

_log = logging.getLogger(__name__)


def train(overrides: Sequence[str], api: EmbeddedAPI | None) -> dict[str, Any]:
    """What the run that *overrides* describe has come to; *api* is the embedded one, if that is used."""
    from rl_research.flows.train import train as flow
    from rl_research.runs import left_of, result_of
    from rl_research.training import finished_result, run_all_stages

    def alone(flow_run_id: str) -> dict[str, Any]:
        config = pipeline.config_of(overrides, flow_run_id)
        record = finished_result(config, flow_run_id)
        if record is not None and (left := left_of(record)):
            _log.warning("step %s is not uploaded; the next start tries", ", ".join(map(str, left)))
        return result_of(record or run_all_stages(config, overrides).record)

    result: dict[str, Any] = call_flow(flow, (overrides,), api, alone)
    return result


def evaluate(
    checkpoint: str,
    episodes: int | None,
    overrides: Sequence[str],
    trust_env: bool,
    runs_dir: str,
    api: EmbeddedAPI | None,
) -> dict[str, Any]:
    """What `rl_research.flows.evaluate.evaluate` returns of *checkpoint*."""
    from rl_research.flows import evaluate as evaluating

    def alone(_: str) -> dict[str, Any]:
        found = evaluating.find_checkpoint.fn(checkpoint, overrides, runs_dir)
        scores = evaluating.score_checkpoint.fn(found, episodes, trust_env)
        return evaluating.described(found, scores)

    words = (checkpoint, episodes, overrides, trust_env, runs_dir)
    result: dict[str, Any] = call_flow(evaluating.evaluate, words, api, alone)
    return result


def study(
    name: str,
    overrides: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[Sequence[str]],
    at_a_time: int,
    api: EmbeddedAPI | None,
) -> dict[str, Any]:
    """What `rl_research.flows.study.study` returns; `RLResearchError` if members are not finished."""
    from rl_research.flows import study as studying

    words = (name, overrides, seeds, grid, at_a_time)

    def alone(_: str) -> Any:
        return studying.outcome_of(*words, api=None)

    result: dict[str, Any] = call_flow(studying.study, words, api, alone)
    return result
