"""Deploy what deployment.yaml declares."""

import subprocess
import sys
from pathlib import Path

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound

from rl_research.errors import ConfigError
from rl_research.orchestration.deployment_file import FILE, read


def deploy(path: Path = FILE) -> str:
    """Make the work pool and its queues as *path* declares them, deploy everything in it, and return the pool.

    What was deployed before is brought up to date. Raises `ConfigError` for a mistake in the file, before
    anything is deployed, and with Prefect's own words if it refuses.
    """
    declared = read(path).definitions
    pool = declared.work_pool
    with get_client(sync_client=True) as client:
        if pool.name not in {known.name for known in client.read_work_pools()}:
            _run_prefect("work-pool", "create", pool.name, "--type", pool.type)
        for queue, limit in declared.queues.items():
            _set_limit(client, pool.name, queue, limit)
    _run_prefect("deploy", "--all", "--prefect-file", path.name, folder=path.parent)
    return pool.name


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
