"""``rl-research doctor`` finds what is broken, says what to do, and tells scripts by its code."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conftest import TinyConfig
from wandb_server import WandbServer

from rl_research.cli import doctor_checks
from rl_research.cli.command import main
from rl_research.cli.doctor_checks import Finding, examine, exit_code


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server, known to the environment."""
    with WandbServer() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def look(tiny_config: TinyConfig) -> Callable[..., dict[str, Finding]]:
    """Examine a configuration and give the worst finding about each thing."""
    order = ("ok", "warning", "broken")

    def worst(*overrides: str) -> dict[str, Finding]:
        findings = sorted(examine(tiny_config(*overrides)), key=lambda f: order.index(f.state))
        return {finding.about: finding for finding in findings}

    return worst


def test_all_is_well(look: Callable[..., dict[str, Finding]], server: WandbServer, tmp_path: Path) -> None:
    """With a server that knows the key and a store that takes a probe, nothing is broken or left behind."""
    store = tmp_path / "store"
    found = look("wandb.mode=online", f"storage.url='{store}'")
    assert {about for about, finding in found.items() if finding.state == "broken"} == set()
    assert found["W&B"].state == found["storage"].state == "ok"
    assert list(store.iterdir()) == []
    assert server.run_ids == [], "looking makes no run"


def test_what_is_broken_is_said_with_a_remedy(
    look: Callable[..., dict[str, Finding]], server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forbidden project, a store that refuses, a missing API, a clash of versions: in seconds."""
    server.forbid("tester/secret")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setattr(metadata, "version", lambda name: "4.13.2" if name.startswith("antlr4") else "1.3.9")
    before = time.monotonic()
    found = look(
        "wandb.mode=online", "wandb.project=secret", "wandb.entity=tester",
        f"storage.url='{tmp_path / 'file' / 'below'}'",
    )  # fmt: skip
    assert time.monotonic() - before < 60
    for about in ("W&B", "storage", "Prefect", "versions"):
        assert found[about].state == "broken", found[about]
        assert found[about].remedy, found[about]
    assert found["proxy"].state == "warning"
    assert "password" not in found["proxy"].said
    assert exit_code(list(found.values())) == 2


def test_what_deployments_use_is_looked_at_too(
    tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each store that deployment.yaml names, in overrides, a schedule's own or places, is written to once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    given = [
        {"name": "good", "parameters": {"overrides": [f"storage.url={tmp_path}/store"]}},
        {
            "name": "bad",
            "parameters": {"overrides": ["experiment=cartpole_ppo"]},
            "schedules": [{"parameters": {"overrides": [f"storage.url={tmp_path}/file/below"]}}],
        },
        {"name": "gateway", "parameters": {"where": ["runs", f"file://{tmp_path}/store"]}},
        {"name": "none", "triggers": [{}]},
    ]
    (tmp_path / "deployment.yaml").write_text(json.dumps({"deployments": given}))
    found = {finding.said: finding.state for finding in examine(tiny_config()) if finding.about == "storage"}
    assert [state for said, state in found.items() if "bad in deployment.yaml" in said] == ["broken"]
    assert [state for said, state in found.items() if "good in deployment.yaml" in said] == ["ok"]
    assert [state for said, state in found.items() if "gateway in deployment.yaml" in said] == ["ok"]
    assert list((tmp_path / "store").iterdir()) == []
    (tmp_path / "deployment.yaml").write_text("deployments: [{name: x, parameters: {overrides: [sed=1]}}]")
    wrong = [finding for finding in examine(tiny_config()) if finding.state == "warning" and finding.about == "storage"]
    assert "deployment.yaml" in wrong[0].said
    assert wrong[0].remedy


def test_offline_needs_no_account(look: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where runs are offline, W&B that does not answer is a warning, and the code is 0."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    found = look()
    assert found["W&B"].state == "warning"
    assert exit_code(list(found.values())) == 0


def test_a_full_disk_and_unsynced_runs_are_seen(
    look: Callable[..., dict[str, Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little room is broken; runs that wait for a sync are counted."""
    segment = tmp_path / "r" / "wandb" / "offline-run-20260101_000000-r"
    segment.mkdir(parents=True)
    (segment / "run-r.wandb").write_bytes(b":W&B")
    usage = doctor_checks.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor_checks.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    found = look(f"runs_dir='{tmp_path}'")
    assert found["disk"].state == "broken"
    assert found["runs"].said == "1 unsynced"
    assert found["runs"].remedy == f"rl-research sync {tmp_path}"


def test_the_command_answers_people_and_programs(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A line per finding, or one JSON object."""
    assert main(["doctor", f"runs_dir={tmp_path}"]) == 0
    assert "ok       disk" in capfd.readouterr().out
    assert main(["doctor", "--json", f"runs_dir={tmp_path}"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["exit_code"] == 0
    assert {finding["about"] for finding in answer["findings"]} >= {"W&B", "storage", "versions"}
    assert sys.stdout is not None
