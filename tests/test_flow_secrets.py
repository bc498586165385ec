"""No flow takes a secret as a parameter, and what flows publish holds none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rl_research.config import load_config
from rl_research.errors import ConfigError
from rl_research.runs.record import RunRecord, WandbRecord
from rl_research.runs.run import Run

pytestmark = pytest.mark.usefixtures("prefect_api")
SECRET = "hunter2-and-more"
LITERAL = f"storage.options.secret={SECRET}"


def _train() -> Any:
    from rl_research.flows.train import train

    return train([LITERAL, "storage.url=memory://x"], return_state=True)


def _evaluate() -> Any:
    from rl_research.flows.evaluate import evaluate

    return evaluate("memory://x", overrides=[LITERAL], return_state=True)  # type: ignore[call-overload]  # as Prefect takes it


def _evaluate_url() -> Any:
    from rl_research.flows.evaluate import evaluate

    return evaluate(f"sftp://me:{SECRET}@host/x", return_state=True)  # type: ignore[call-overload]  # as Prefect takes it


def _prune() -> Any:
    from rl_research.flows.prune import prune

    return prune(["memory://x"], overrides=[LITERAL], return_state=True)  # type: ignore[call-overload]  # as Prefect takes it


def _sync() -> Any:
    from rl_research.flows.sync import sync

    return sync(["memory://x"], overrides=[LITERAL], return_state=True)  # type: ignore[call-overload]  # as Prefect takes it


def _study() -> Any:
    from rl_research.flows.study import study

    return study("secret", ["env=cartpole"], [0], [[LITERAL]], return_state=True)  # type: ignore[call-overload]  # as Prefect takes it


@pytest.mark.parametrize("flow", [_train, _evaluate, _evaluate_url, _prune, _sync, _study])
def test_a_flow_refuses_a_literal_secret(flow: Callable[[], Any]) -> None:
    """What Prefect would store is refused in a line that says what to write instead."""
    error = flow().result(raise_on_failure=False)
    assert isinstance(error, ConfigError), error
    assert "${oc.env:NAME}" in str(error)
    assert SECRET not in str(error)


def test_labels_show_a_url_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the checkpoints are is a label of the flow run; the password in the URL is not."""
    from rl_research.orchestration import artifacts

    labels: dict[str, Any] = {}
    client = SimpleNamespace(
        read_flow_run=lambda _: SimpleNamespace(tags=[]),
        update_flow_run=lambda *_, **__: None,
        update_flow_run_labels=lambda _, given: labels.update(given),
    )

    class Opened:
        def __enter__(self) -> Any:
            return client

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(artifacts, "get_client", lambda **_: Opened())
    run = SimpleNamespace(
        record=RunRecord(flow_run_id="0" * 32, wandb=WandbRecord(mode="offline")),
        config=load_config(["run_id=mine", f"storage.url=sftp://me:{SECRET}@host/runs"]),
        dir=Path("runs/mine"),
    )
    artifacts.label_flow_run(cast("Run", run))
    assert labels["checkpoints"] == "sftp://me@host/runs/mine/checkpoints"
