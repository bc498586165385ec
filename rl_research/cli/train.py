"""``rl-research train``: train, score and report one experiment."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from rl_research.cli.common import Answer, answering, as_overrides, composing, prefect_api, words_of
from rl_research.cli.results import summary

if TYPE_CHECKING:
    from rl_research.config import Config, Experiment
    from rl_research.training import Prepared

_log = logging.getLogger(__name__)


class _Settings(click.Command):
    """A command whose help lists every group, choice and setting."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        if (option := super().get_help_option(ctx)) is not None:
            option.is_eager = False  # it comes after --config-dir, whose choices it lists
        return option

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["plugins"] = [word for word in args if word.lstrip("+").startswith("plugins=")]
        return super().parse_args(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        return help_on_settings(ctx.params.get("config_dirs", ()), ctx.meta["plugins"])


@click.command(cls=_Settings, short_help="Train, score and report one experiment.")
@words_of("[key=value …]")
@composing
@answering
@click.option("--cfg", is_flag=True, help="Print the composed configuration.")
def train(overrides: tuple[str, ...], answer: Answer, cfg: bool) -> None:
    """Train, score and report one experiment."""
    from rl_research.config import compose_experiment, hide_secrets

    words = hide_secrets(overrides)
    experiment = compose_experiment(words)
    config = experiment.config
    if cfg:
        answer(_shown_as_yaml(config))
        return
    from rl_research.training import finished_result, preflight

    record = finished_result(config)
    if record is not None and not record.not_uploaded:
        _log.info("run %s is finished: its result is returned", config.run_id)
        result = record.result
    else:
        with ExitStack() as built:
            with prefect_api() as api:  # its embedded server starts meanwhile
                prepared = built.enter_context(preflight(config)) if record is None else None
                _log.info(
                    "%s: %s on %s, seed %d, %s steps", config.name, config.algorithm.name.upper(), config.env.id,
                    config.experiment.seed, f"{config.experiment.total_timesteps:,}",
                )  # fmt: skip
                from rl_research.flows.train import train as flow
                from rl_research.orchestration import call_flow

            def without_prefect(flow_run_id: str) -> dict[str, Any]:
                return _trained_without_prefect(experiment, prepared, flow_run_id)

            result = call_flow(flow, (words,), api, without_prefect, experiment, prepared)
    answer.result(result, lambda: summary(result))


def _trained_without_prefect(experiment: Experiment, prepared: Prepared | None, flow_run_id: str) -> dict[str, Any]:
    """Return what the flow returns; *flow_run_id* is the flow run that began, or a new id."""
    from rl_research.training import finished_result, run_all_stages

    experiment = experiment.identified(flow_run_id)
    record = finished_result(experiment.config, flow_run_id)
    if record is not None and (left := record.not_uploaded):
        _log.warning("step %s is not uploaded; the next start tries", ", ".join(map(str, left)))
    return (record or run_all_stages(experiment, prepared).record).result


def _shown_as_yaml(config: Config) -> str:
    import yaml

    from rl_research.tracking import public

    composed = config.model_dump(mode="json")
    composed["storage"] = public(composed["storage"])
    return yaml.safe_dump(composed, sort_keys=False, allow_unicode=True)


def help_on_settings(folders: Sequence[str] = (), plugins: Sequence[str] = ()) -> str:
    """Return the groups and settings, straight from the schema and the folders, and the names that *plugins* bring."""
    from rl_research.config import RUN_DIR, compose_config, config_dirs, groups, register, settings, spelt

    own = config_dirs(as_overrides(folders))
    lines = ["usage: rl-research train [key=value …] [--config-dir PATH] [--json] [--cfg] [-h]", "", "groups:"]
    for group in groups(own):
        text = textwrap.fill(_shown_choices(group, own), 96, subsequent_indent=" " * 20)
        lines.append(f"  {group + '=NAME':<17} {text}")
    lines += ["", "settings, with their defaults:"]
    defaults = compose_config(plugins).model_dump(mode="json")
    for name, meaning in settings().items():
        default = "runs/RUN_ID" if (value := _at(defaults, name)) == RUN_DIR else spelt(value)
        lines.append(f"  {name + '=' + default:<38} {meaning}")
    if registered := register.registered():
        lines += ["", "names that plugins have registered:"]
        lines += [f"  {kind:<18} {', '.join(names)}" for kind, names in registered.items()]
    lines += [
        "",
        "options:",
        "  --config-dir PATH  folder with configurations of your own, found before ours; repeatable.",
        "                     RL_RESEARCH_CONFIG_PATH names such folders, too",
        "  --json             print one JSON object on stdout, everything else on stderr",
        "  --cfg              print the composed configuration and stop",
        "",
        "exit codes: 0 done; 2 a mistake, said in one line; 75 stopped by a signal and committed;",
        "            130 cut off; 1 a bug, with its traceback",
    ]
    return "\n".join(lines)


def _shown_choices(group: str, own: Sequence[str]) -> str:
    """Return the choices of *group*, the user's own first and with the folder that they are in."""
    from rl_research.config import origins

    found = origins(group, own)
    named = [f"{name} ({folder})" for name, folder in found.items() if folder is not None]
    return ", ".join([*named, *(name for name, folder in found.items() if folder is None)])


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
