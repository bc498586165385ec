"""Members of a study in processes of this machine.

One process per run, because Stable-Baselines3 draws from process-wide random generators.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rl_research.errors import Interrupted
from rl_research.runs import holder_of
from rl_research.studies.plan import Member, Study
from rl_research.system import StopRequest
from rl_research.training import finished_result

_log = logging.getLogger(__name__)
_POLL = 0.2  # seconds between two looks at the members
_STOP_TIMEOUT = 60.0  # seconds that a member gets to commit, once the study is asked to stop


def run_members(
    study: Study, stop: StopRequest, at_a_time: int = 1, find_api: Callable[[], str | None] = lambda: None
) -> None:
    """Run every member that is not finished, *at_a_time* processes at once; failures stop no other member.

    *find_api* returns the URL of a Prefect API that answers, and is called before each start. A member
    without one brings its own. A member that another process has open is waited for.

    Asked to stop, it terminates the processes, waits until they have committed, and raises `Interrupted`.
    """
    logs = study.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(study.members)
    running: dict[Member, subprocess.Popen[bytes]] = {}
    try:
        while (waiting or running) and not stop:
            running = {member: child for member, child in running.items() if child.poll() is None}
            waiting = [member for member in waiting if finished_result(member.config) is None]
            for member in [m for m in waiting if not holder_of(m.config.run_dir)]:
                if len(running) < at_a_time and member not in running:
                    waiting.remove(member)
                    running[member] = _start(member, logs, find_api())
            time.sleep(_POLL)
    finally:
        _terminate(list(running.values()))
    if stop:
        assert stop.by is not None
        raise Interrupted(f"{stop.by.name}: study {study.name} stopped at {study.steps} steps")


def _start(member: Member, logs: Path, api: str | None) -> subprocess.Popen[bytes]:
    _log.info("%s: %s", member.run_id, member.setting or "as it is")
    # The flow run of the study is not the member's.
    others = ("PREFECT__", "PREFECT_API_URL")
    env = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    env |= {"PREFECT_API_URL": api} if api else {}
    with (logs / f"{member.run_id}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rl_research", "train", *member.overrides],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
            start_new_session=True,  # Ctrl-C is meant for the study, which passes it on
        )  # fmt: skip


def _terminate(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + _STOP_TIMEOUT
    for child in children:
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
