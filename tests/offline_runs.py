"""Offline runs for the tests of sync, made by the real client in one process of its own.

A run is said in a word, ``KIND:RUN_ID:ROWS``: ``bare`` rows alone; ``rich`` an image, a film, a table and an
artifact with a file, too; ``apart`` the same, with what waits to be uploaded where ``WANDB_DATA_DIR`` says;
``plain`` as a script without this package writes it, in ``logs/wandb``; ``cut`` a process killed by SIGKILL while it
logs; ``online`` a run with a server.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers import children, environment

QUICK = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "1",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "0.1",
    "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": "5",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "1",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "0.1",
    "WANDB_X_FILE_STREAM_TIMEOUT_SECONDS": "5",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "1",
    "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MIN_SECONDS": "0.1",
}
PROJECT = "sync"


def make(folder: Path, *words: str, **variables: str) -> None:
    """Make the runs that *words* say, below *folder*."""
    subprocess.run(
        [sys.executable, __file__, str(folder), *words],
        env=environment(WANDB_ENTITY="tester", **variables),
        check=True,
        timeout=120,
        capture_output=True,
    )


def make_killed(folder: Path, word: str) -> None:
    """Make the run that *word* says and kill its process once its rows are on disk."""
    kill(stay(folder, word))


def kill(program: subprocess.Popen[bytes]) -> None:
    """SIGKILL *program* and W&B's service, which has a session of its own."""
    service = children(program.pid)
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    for pid in service:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in service):
        assert time.monotonic() < deadline, "W&B's service outlives its program"
        time.sleep(0.05)


def stay(folder: Path, word: str, **variables: str) -> subprocess.Popen[bytes]:
    """Make the run that *word* says and leave its process logging nothing more, but alive."""
    program = subprocess.Popen(
        [sys.executable, __file__, str(folder), word, "--stay"],
        env=environment(WANDB_ENTITY="tester", **variables),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"logged\n"
    time.sleep(1.5)  # the log is flushed every half second
    return program


def copy(source: Path, target: Path) -> Path:
    """Copy a folder of runs, keeping its links."""
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    return target


def ledger_of(folder: Path, run_id: str) -> dict[str, Any]:
    """The ledger of a run somewhere below *folder*."""
    (path,) = folder.rglob(f"sync-{run_id}.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def log_of(folder: Path, run_id: str) -> Path:
    """The only log of a run below *folder*."""
    (path,) = folder.rglob(f"*run-*_*/run-{run_id}.wandb")
    return path


def _settings(wandb: Any, kind: str, number: int) -> Any:
    if kind == "plain":
        return wandb.Settings(silent=True)
    return wandb.Settings(
        silent=True, console="off", x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
        x_transaction_log_flush_interval=0.5, x_sync_dir_suffix=str(number) if number else "",
        x_file_stream_transmit_interval=0.2, finish_timeout=5,
    )  # fmt: skip


def _run(wandb: Any, folder: Path, word: str) -> Any:
    kind, run_id, rows = word.split(":")
    home = folder / "logs" if kind == "plain" else folder / "runs" / run_id
    home.mkdir(parents=True, exist_ok=True)
    if kind != "apart":
        os.environ["WANDB_DATA_DIR"] = str(home / "wandb")
    earlier = len(list(home.glob(f"wandb/*run-*_*-{run_id}*")))
    run = wandb.init(
        mode="online" if kind == "online" else "offline",
        id=run_id,
        project=PROJECT,
        dir=str(home),
        config={"run_id": run_id, "kind": kind},
        resume=None if kind == "plain" else "allow",
        reinit="create_new",
        settings=_settings(wandb, kind, earlier),
    )
    for row in range(int(rows)):
        run.log({"global_step": 1000 * earlier + row, "loss": row / 2})
    if kind in ("rich", "apart"):
        _log_media(wandb, run, home)
    return run


def _log_media(wandb: Any, run: Any, home: Path) -> None:
    import numpy as np

    film = home / "film.gif"
    film.write_bytes(b"GIF89a" + run.id.encode())
    picture = wandb.Image(np.zeros((8, 8, 3), dtype=np.uint8))
    run.log({"picture": picture, "film": wandb.Video(str(film))})
    run.log({"table": wandb.Table(columns=["a"], data=[[1], [2]])})
    file = home / "models" / "weights für alle.bin"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(run.id.encode() * 100)
    staged = wandb.Artifact(f"staged-{run.id}", type="model")
    staged.add_file(str(file))
    run.log_artifact(staged)
    in_place = wandb.Artifact(f"in-place-{run.id}", type="model")
    in_place.add_file(str(file), policy="immutable", skip_cache=True)
    run.log_artifact(in_place)
    reference = wandb.Artifact(f"reference-{run.id}", type="model")
    reference.add_reference(file.as_uri())
    run.log_artifact(reference)


def _main(folder: Path, *words: str, stays: bool) -> None:
    import wandb

    for word in words:
        run = _run(wandb, folder, word)
        if stays:
            sys.stdout.write("logged\n")
            sys.stdout.flush()
            time.sleep(120)
        run.finish()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *(word for word in sys.argv[2:] if word != "--stay"), stays="--stay" in sys.argv)
