"""Deploy or serve what deployment.yaml declares: at a server with workers, or in this very process."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

from rl_research.errors import ConfigError
from rl_research.orchestration import prefect_private
from rl_research.orchestration.deployment_file import FILE, Deployment, flow_of, is_module_path, read
from rl_research.orchestration.serving import run_until_stopped


def deploy(path: Path = FILE) -> None:
    """Make the work pool and its queues as *path* declares them, and deploy everything in it.

    What was deployed before is brought up to date. Raises `ConfigError` for a mistake in the file, before
    anything is deployed, and with Prefect's own words if it refuses.
    """
    declared = read(path).definitions
    pool = declared.work_pool
    with get_client(sync_client=True) as client:
        if pool["name"] not in {known.name for known in client.read_work_pools()}:
            _run_prefect("work-pool", "create", pool["name"], "--type", pool["type"])
        for queue, limit in declared.queues.items():
            _set_limit(client, pool["name"], queue, limit)
    _run_prefect("deploy", "--all", "--prefect-file", path.name, folder=path.parent)


def _set_limit(client: SyncPrefectClient, pool: str, queue: str, limit: int | None) -> None:
    try:
        known = client.read_work_queue_by_name(queue, work_pool_name=pool)
    except ObjectNotFound:
        client.create_work_queue(queue, concurrency_limit=limit, work_pool_name=pool)
    else:
        client.update_work_queue(known.id, concurrency_limit=limit)


def _run_prefect(*arguments: str, folder: Path | None = None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        printed = (done.stdout + done.stderr).strip().splitlines()[-20:]
        raise ConfigError("\n".join([f"prefect {' '.join(arguments)}:", *printed]))


def serve(path: Path = FILE, limit: int = 2) -> None:
    """Run everything in *path* from this process, *limit* flow runs at a time, until it is stopped.

    SIGTERM, Ctrl-C or a closed terminal has the flow runs commit first, then it ends; what was stopped
    waits, scheduled, for the next `serve` or worker. A second signal ends all at once. A deployment of the
    same name that was meant for workers is replaced. Raises `ConfigError` for a mistake in the file.
    """
    deployments = read(path).deployments
    for entry in deployments:  # as a worker would for each flow run
        os.environ.update({n: str(value) for n, value in entry.work_pool.job_variables.get("env", {}).items()})
    runner = prefect_private.committing_runner(limit)
    with get_client(sync_client=True) as client:
        for entry in deployments:
            _make_place(client, f"{flow_of(entry.entrypoint, path.parent).name}/{entry.name}")
    for entry in deployments:
        runner.add_deployment(deployment_to_serve(entry, path.parent))
    run_until_stopped(runner)


def _make_place(client: SyncPrefectClient, name: str) -> None:
    """Delete a deployment that waits for a worker: served under its name, it would lose where its flow is."""
    with suppress(ObjectNotFound):
        known = client.read_deployment_by_name(name)
        if known.work_pool_name is not None or known.pull_steps:
            client.delete_deployment(known.id)


def deployment_to_serve(entry: Deployment, folder: Path) -> RunnerDeployment:
    """Return *entry*, whose flow may lie below *folder*, as Prefect's runner takes it."""
    by_module = is_module_path(entry.entrypoint)
    made = flow_of(entry.entrypoint, folder).to_deployment(
        name=entry.name,
        description=entry.description,
        tags=entry.tags,
        parameters=entry.parameters,
        schedules=[Schedule(**one.model_dump(exclude_unset=True)) for one in entry.schedules],
        triggers=[*entry.triggers],
        concurrency_limit=entry.concurrency_limit,
        entrypoint_type=EntrypointType.MODULE_PATH if by_module else EntrypointType.FILE_PATH,
    )
    assert isinstance(made, RunnerDeployment)  # a coroutine only where an event loop runs
    return made
