"""deployment.yaml is what it says: every key known, every entrypoint there, every experiment composed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl_research.errors import ConfigError
from rl_research.orchestration import deployment_file

_ROOT = Path(__file__).parents[1]
_FILE = _ROOT / deployment_file.FILE
_EXPECTED = {
    "train/nightly", "study/weekly-benchmark", "evaluate/checkpoint", "sync/every-15-minutes",
    "upload/hourly", "prune/daily", "watchdog/every-5-minutes",
}  # fmt: skip

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_ROOT)


@pytest.fixture
def raw() -> dict[str, Any]:
    """The file, without the entries whose flow is not there yet, and no two parts of it shared."""
    found = deployment_file.parsed(_FILE)
    found["deployments"] = [entry for entry in found["deployments"] if _is_there(entry)]
    parts: dict[str, Any] = json.loads(json.dumps(found))
    return parts


def _is_there(entry: dict[str, Any]) -> bool:
    return (_ROOT / entry["entrypoint"].split(":")[0]).exists()


def _named(raw: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in raw["deployments"] if entry["name"] == name)
    return found


def test_the_file_holds_no_mistake(raw: dict[str, Any]) -> None:
    """Keys, schedules, triggers, parameters, entrypoints and overrides are all what they should be."""
    assert list(deployment_file.problems(raw, _ROOT)) == []


def test_what_is_scheduled_is_what_is_documented() -> None:
    """The deployments have the names by which the documents call them."""
    entries = deployment_file.parsed(_FILE)["deployments"]
    stems = [Path(entry["entrypoint"].split(":")[0]).stem for entry in entries]
    assert {f"{stem}/{e['name']}" for stem, e in zip(stems, entries, strict=True)} == _EXPECTED


def test_a_flow_is_called_as_its_file(raw: dict[str, Any]) -> None:
    """`train/nightly` is the flow called train in flows/train.py."""
    for entry in raw["deployments"]:
        assert deployment_file.flow_of(entry["entrypoint"]).name == Path(entry["entrypoint"].split(":")[0]).stem


def test_an_entrypoint_may_be_a_module(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``rl_research.flows.train:train`` is our flow, in a folder whose own package is called flows, too."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("raise RuntimeError('this package is the user's')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for entry in raw["deployments"]:
        stem = Path(entry["entrypoint"].split(":")[0]).stem
        entry["entrypoint"] = f"rl_research.flows.{stem}:{stem}"
        assert deployment_file.flow_of(entry["entrypoint"], tmp_path).name == stem
    assert list(deployment_file.problems(raw, tmp_path)) == []


def test_training_holds_no_lease_at_the_api(raw: dict[str, Any]) -> None:
    """What trains has no concurrency_limit, for Prefect ends it when its API is away for minutes."""
    for name in ("nightly", "weekly-benchmark", "checkpoint"):
        if any(entry["name"] == name for entry in raw["deployments"]):
            entry = _named(raw, name)
            assert "concurrency_limit" not in entry
            assert entry["work_pool"]["work_queue_name"] == "training"
    assert raw["definitions"]["queues"]["training"] == 1


def _nightly(**changes: Any) -> Change:
    return lambda raw: _named(raw, "nightly").update(changes)


def _watchdog(**changes: Any) -> Change:
    return lambda raw: _named(raw, "every-5-minutes")["triggers"][0].update(changes)


def _schedule(**schedule: Any) -> Change:
    return _nightly(schedules=[schedule])


def _without(*path: Any) -> Change:
    def change(raw: dict[str, Any]) -> None:
        place: Any = raw
        for key in path[:-1]:
            place = _named(raw, key) if place is raw and key != "definitions" else place[key]
        del place[path[-1]]

    return change


def _set(name: str, section: str, /, **changes: Any) -> Change:
    return lambda raw: _named(raw, name)[section].update(changes)


_MISTAKES: dict[str, tuple[Change, str]] = {
    "a misspelt key": (_nightly(concurrency_limt=1), "'concurrency_limt' .* 'concurrency_limit'"),
    "a misspelt key of the file": (lambda raw: raw.update(pul=[]), "'pul' .* 'pull'"),
    "no name": (_without("nightly", "name"), "name is not set"),
    "one name twice": (lambda raw: raw["deployments"].append(_named(raw, "nightly")), "two of that name"),
    "no work pool": (_without("nightly", "work_pool"), "work_pool is not set"),
    "a misspelt key of the pool": (_set("nightly", "work_pool", queue="x"), "'work_pool.queue'"),
    "an unknown queue": (_set("nightly", "work_pool", work_queue_name="trainning"), "'trainning' .* 'training'"),
    "an unknown pool": (_set("nightly", "work_pool", name="elsewhere"), "'elsewhere'"),
    "a misspelt limit": (_nightly(concurrency_limit={"limit": 1, "limt": 1}), "'concurrency_limit.limt'"),
    "an unknown strategy": (_nightly(concurrency_limit={"limit": 1, "collision_strategy": "WAIT"}), "strategy=WAIT"),
    "a feature of the cloud": (_nightly(sla=[{"name": "x", "duration": 1}]), "'sla' is not a setting"),
    "a missing file": (_nightly(entrypoint="flows/trian.py:train"), "trian"),
    "a missing function": (_nightly(entrypoint="flows/train.py:trian"), "trian"),
    "a bad cron": (_schedule(slug="a", cron="0 25 * * *"), "0 25"),
    "a bad time zone": (_schedule(slug="a", cron="0 3 * * *", timezone="Mars"), "Mars"),
    "a bad rrule": (_schedule(slug="a", rrule="FREQ=SOMETIMES"), "SOMETIMES"),
    "two kinds of schedule": (_schedule(slug="a", cron="0 3 * * *", interval=60), "[Ee]xactly one"),
    "a misspelt key of a schedule": (_schedule(slug="a", crn="0 3 * * *"), "crn"),
    "a schedule without a slug": (_schedule(cron="0 3 * * *"), "slug"),
    "an interval without an anchor": (_schedule(slug="a", interval=60), "anchor_date"),
    "a misspelt setting": (_set("nightly", "parameters", overrides=["experiment.sed=1"]), "experiment.seed"),
    "an unknown experiment": (_set("nightly", "parameters", overrides=["experiment=cartpole_pop"]), "cartpole_ppo"),
    "overrides that are a text": (_set("nightly", "parameters", overrides="seed=1"), "overrides"),
    "a mistake in a schedule's overrides": (
        _schedule(slug="a", cron="0 3 * * *", parameters={"overrides": ["env=cartpol"]}),
        "cartpole",
    ),
    "an unknown parameter": (_set("nightly", "parameters", override=[]), "'override' .* 'overrides'"),
    "a parameter of the wrong type": (
        _set("checkpoint", "parameters", checkpoint="runs/a", episodes="many"),
        "episodes",
    ),
    "a schedule without what the flow needs": (
        lambda raw: _named(raw, "checkpoint").update(schedules=[{"slug": "a", "cron": "0 3 * * *"}]),
        "without checkpoint",
    ),
    "a misspelt key of a trigger": (_watchdog(expectt=["x"]), "'expectt' .* 'expect'"),
    "a trigger for everything": (_watchdog(expect=[]), "every event"),
    "a trigger of no kind": (_watchdog(type="evnt"), "evnt"),
    "a trigger's unknown parameter": (_watchdog(parameters={"flow": "x"}), "'flow'"),
    "a variable that nobody sets": (
        lambda raw: raw.update(pull=[{"x": {"directory": "{{ $RL_RESEARCH_NOWHERE }}"}}]),
        "RL_RESEARCH_NOWHERE",
    ),
    "an entry that is a text": (lambda raw: raw["deployments"].append("nightly"), "nightly: should be a mapping"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", _MISTAKES)
def test_a_mistake_is_named(raw: dict[str, Any], mistake: str) -> None:
    """Each planted mistake is found, alone, in a line that names it; most of them Prefect lets pass."""
    plant, line = _MISTAKES[mistake]
    plant(raw)
    found = list(deployment_file.problems(raw, _ROOT))
    assert len(found) == 1, found
    assert re.search(line, found[0]), found


@pytest.mark.parametrize(
    ("text", "said"), [(None, "No such file"), ("a: [", "no YAML"), ("- a", "mapping"), ("deployments: {}", "list")]
)
def test_what_is_no_deployments_file_is_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    """A file that is missing, no YAML or of another shape is a mistake with a remedy, not a traceback."""
    path = tmp_path / "deployment.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        deployment_file.read(path)


def test_a_mistake_names_its_file_and_deployment(tmp_path: Path, raw: dict[str, Any]) -> None:
    """Read from disk, a mistake is a `ConfigError` that says where."""
    for entry in raw["deployments"]:
        entry["entrypoint"] = str(_ROOT / entry["entrypoint"])
    _named(raw, "nightly")["tag"] = ["x"]
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"deployment\.yaml: nightly: 'tag' .* 'tags'"):
        deployment_file.read(path)
