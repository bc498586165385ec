"""A run's settings: the ``wandb`` section, the arguments and the environment together."""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rl_research.config import RUN_DIR, WandbSettings, plain, validated
from rl_research.errors import ConfigError, in_a_line, shown
from rl_research.system import expanded
from rl_research.tracking import provenance

#: The launch decides: where one of these is set, it wins over the ``wandb`` section.
ENVIRONMENT = {
    "WANDB_MODE": "mode",
    "WANDB_DIR": "dir",
    "WANDB_PROJECT": "project",
    "WANDB_ENTITY": "entity",
    "WANDB_RUN_GROUP": "group",
    "WANDB_TAGS": "tags",
    "WANDB_NAME": "name",
    "WANDB_NOTES": "notes",
    "WANDB_JOB_TYPE": "job_type",
}
_SYNONYMS = {"dryrun": "offline", "run": "online"}
_RUN_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")
_OUTPUT_DIR = "${hydra:runtime.output_dir}"


@dataclass(frozen=True)
class RunSettings:
    """Settings that the logger needs before it opens a run."""

    run_id: str
    wandb: WandbSettings
    root: Path  # gets the folder ``wandb``
    dir: Path  # the run's own folder
    config: dict[str, object]
    reopens: bool = False  # a run that has ended, to add to it: its configuration is not logged again

    def facts(self, env: object) -> dict[str, object]:
        """Return the run's configuration as W&B shows it, and where it comes from, without secrets."""
        if self.reopens:
            return {}
        versions = provenance.package_versions()
        facts = {**provenance.public(self.config), "run_id": self.run_id, "versions": versions}
        if git := provenance.git_state():
            facts["git"] = git
        experiment = facts.get("experiment")
        if isinstance(experiment, Mapping) and "seed" in experiment:
            facts.setdefault("seed", experiment["seed"])
        if described := provenance.environment_facts(env):
            known = facts.get("env")
            facts["env"] = {**(known if isinstance(known, Mapping) else {}), **described}
        if flow_run := provenance.current_flow_run():
            facts["prefect"] = flow_run
        return facts


def resolve_settings(
    config: object, run_id: str | None = None, run_dir: str | os.PathLike[str] | None = None
) -> RunSettings:
    """Return *config*, the arguments and the environment together; raise `ConfigError` for what is wrong."""
    if not isinstance(config, Mapping | BaseModel):
        raise ConfigError(
            f"ExperimentLogger needs a configuration, not {type(config).__name__}: "
            'a Config, a DictConfig or a mapping such as {"wandb": {"project": "my_project"}}.'
        )
    settings = plain_config(config)
    wandb = _wandb_section(settings.get("wandb"))
    chosen = _run_id(run_id, settings)
    directory = _run_dir(run_dir, settings, wandb.dir, chosen)
    root = _absolute(wandb.dir.replace(_OUTPUT_DIR, RUN_DIR).replace(RUN_DIR, str(directory)))
    return RunSettings(run_id=chosen, wandb=wandb, root=root, dir=directory, config=settings)


def plain_config(config: Mapping[Any, Any] | BaseModel) -> dict[str, Any]:
    """Return *config* as plain dicts, lists and scalars; raise `ConfigError` where it cannot be read."""
    try:
        return plain(config)
    except Exception as error:  # noqa: BLE001  # a mapping of the user's own, an interpolation, a model of pydantic's
        kind, reason = type(config).__name__, in_a_line(error)
        raise ConfigError(f"the configuration, of type {kind}, cannot be read: {reason}") from None


def settings_to_reopen(run_id: str, path: str, mode: str, root: Path) -> RunSettings:
    """Return what it takes to add to the run at *path*, ``[entity/]project/run_id``, which has ended.

    The environment has no say here: it is meant for runs that begin.
    """
    *entity, project, _ = path.split("/")
    section = {"project": project, "mode": mode, "job_type": None}
    wandb = validated(WandbSettings, {**section, "entity": next(iter(entity), None)}, "wandb")
    return RunSettings(run_id, wandb, root, root, {}, reopens=True)


def _wandb_section(section: object) -> WandbSettings:
    if not isinstance(section, WandbSettings | Mapping | None):
        raise ConfigError(f"wandb={shown(section)}: should be a mapping. For instance wandb={{'mode': 'offline'}}.")
    given = {} if section is None else provenance.public(plain_config(section))
    found: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if isinstance(found.get("tags"), str):
        found["tags"] = [found["tags"]]
    variables = {setting: os.environ.get(variable) for variable, setting in ENVIRONMENT.items()}
    launch: dict[str, Any] = provenance.public({setting: value for setting, value in variables.items() if value})
    found |= launch
    if "tags" in launch:
        found["tags"] = [tag for part in launch["tags"].split(",") if (tag := part.strip())]
    if (mode := launch.get("mode", "offline")) not in ("online", "offline", "disabled", *_SYNONYMS):
        raise ConfigError(
            f"WANDB_MODE={in_a_line(mode)} is not supported: one process writes one run. "
            "Use online, offline or disabled."
        )
    if isinstance(chosen := found.get("mode"), str):
        found["mode"] = _SYNONYMS.get(chosen, chosen)
    return validated(WandbSettings, found, "wandb")


def _run_id(given: str | None, settings: Mapping[str, object]) -> str:
    """Return the first of: argument, ``config.run_id``, ``WANDB_RUN_ID``, the flow run, a new one."""
    named = (given, settings.get("run_id"), os.environ.get("WANDB_RUN_ID"))
    run_id = next((one for one in named if one is not None and not (isinstance(one, str) and one == "")), None)
    if run_id is None and (flow_run := provenance.current_flow_run()):
        # The end of the flow run's id is random; its beginning is the time of its creation.
        run_id = flow_run["flow_run_id"].replace("-", "")[-12:]
    run_id = secrets.token_hex(6) if run_id is None else run_id
    found = provenance.text(run_id) if isinstance(run_id, str | int) else ""
    if not _RUN_ID.fullmatch(found):
        said = in_a_line(found) if found else shown(run_id)
        raise ConfigError(
            f"run_id={said}: use 1 to 64 letters, digits, '-', '_' and '.'. For instance run_id=my-run_1."
        )
    return found


def _run_dir(given: str | os.PathLike[str] | None, settings: Mapping[str, object], wandb_dir: str, run_id: str) -> Path:
    """Return the run's own folder: given, or named after the run so that runs never share one."""
    if given is not None:
        return _absolute(given)
    parent = settings.get("runs_dir")
    if parent is None:
        parent = "runs" if RUN_DIR in wandb_dir or _OUTPUT_DIR in wandb_dir else wandb_dir
    return _absolute(parent) / run_id


def _absolute(path: Any) -> Path:
    try:
        return Path(os.path.abspath(expanded(path)))  # noqa: PTH100  # keeps symbolic links
    except TypeError:
        raise ConfigError(f"{shown(path)} is no folder's name, but of type {type(path).__name__}.") from None
