"""Prefect's embedded API, whose slow, failing or dying start fails no run: real processes, really killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import children, environment, record_of, steps_committed, tiny

from rl_research.config import compose_experiment
from rl_research.orchestration.embedded_api import EmbeddedAPI
from rl_research.orchestration.local_server import HOST, answers
from rl_research.training import stages

pytestmark = pytest.mark.slow

_ALONE = "Prefect's API is not to be had, so this goes on without it: "
_NOWHERE = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////nowhere/prefect.db"}
_UNTOLD = "Prefect could not be told how this ended: "


@pytest.fixture
def api() -> Iterator[EmbeddedAPI]:
    """An embedded API that is just starting."""
    made = EmbeddedAPI()
    yield made
    made.close()


def _command(tmp_path: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """The command in a folder and with a Prefect of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rl_research", *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(PREFECT_HOME=str(tmp_path / "prefect"), **env),
    )  # fmt: skip


def _server_of(pid: int) -> int | None:
    for child in children(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"rl_research.orchestration.embedded_api" in command:
            return child
    return None


def _wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _kill_server(process: subprocess.Popen[str]) -> int:
    """SIGKILL the server once it is there; its number."""
    _wait_for(lambda: _server_of(process.pid), process)
    server = _server_of(process.pid)
    assert server is not None
    os.kill(server, signal.SIGKILL)
    return server


def _long(tmp_path: Path, *words: str) -> list[str]:
    """Words of a run of some seconds."""
    return tiny(
        tmp_path / "runs", "mine", "wandb=disabled", "experiment.total_timesteps=24000",
        "checkpoint.every=2000", "evaluation.enabled=false", "experiment.log_every=2000", *words,
    )  # fmt: skip


def _training(tmp_path: Path) -> Callable[[], object]:
    return lambda: steps_committed(tmp_path / "runs/mine")


def test_nobody_else_can_have_the_port(api: EmbeddedAPI) -> None:
    """The port is taken before the server exists, and who asks early is answered when it does."""
    port = int(api.url.split(":")[-1].split("/")[0])
    with pytest.raises(OSError, match="in use"):
        socket.create_server((HOST, port))
    assert api.answers(180)


def test_a_server_that_dies_refuses(api: EmbeddedAPI) -> None:
    """Killed before it answers, it is given up at once, not when the time is over."""
    os.kill(api._server.pid, signal.SIGKILL)
    began = time.monotonic()
    assert not api.answers(180)
    assert not answers(api.url, 60)
    assert time.monotonic() - began < 5


def test_one_that_does_not_answer_in_time_is_given_up(api: EmbeddedAPI) -> None:
    """Whoever asked, and whoever asks then, is refused at once."""
    server = api._server
    os.kill(server.pid, signal.SIGSTOP)
    assert not api.answers(0.5)
    assert server.poll() is not None
    began = time.monotonic()
    assert not answers(api.url, 60)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("words", [("train",), ("study", "mine", "--seeds", "1")], ids=lambda words: words[0])
def test_without_an_api_the_experiment_is_done(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A server that cannot start costs one line that says why; the result is what it always is."""
    run_id = "mine" if words[0] == "train" else None
    process = _command(
        tmp_path, *words, "--json", *tiny(tmp_path / "runs", run_id, "wandb=disabled"),
        **_NOWHERE,
    )  # fmt: skip
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert err.count(_ALONE) == 1
    assert "unable to open database file" in err
    result = json.loads(out)
    if words[0] == "train":
        assert (result["status"], result["global_step"]) == ("finished", 96)
        assert result["scores"]["episodes"] == 4
        assert Path(result["run_dir"], "report.html").exists()
    else:
        assert result["failed"] == []


def test_evaluate_does_without_an_api(tmp_path: Path) -> None:
    """A checkpoint is scored as ever, with the same line."""
    words = tiny(tmp_path / "runs", "mine", "wandb=disabled")
    result = stages.run_all_stages(compose_experiment(words)).record.result
    process = _command(tmp_path, "evaluate", "mine", "--json", **_NOWHERE)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert err.count(_ALONE) == 1
    assert json.loads(out)["scores"] == result["scores"]


def test_a_proxy_is_not_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a proxy is set, the API is told the end of the flow run all the same."""
    process = _command(tmp_path, "train", "--json", *_long(tmp_path), http_proxy="http://127.0.0.1:9")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert not {word for word in ("Traceback", _ALONE, _UNTOLD) if word in err}
    result = json.loads(out)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    later = EmbeddedAPI()
    try:
        assert later.answers(180)
        with urllib.request.urlopen(f"{later.url}/flow_runs/{result['flow_run_id']}") as answer:
            assert json.load(answer)["state_type"] == "COMPLETED"
    finally:
        later.close()


def test_a_server_that_dies_costs_a_line(tmp_path: Path) -> None:
    """Killed beside training: the run is finished, and what Prefect does not know is said."""
    words = _long(tmp_path)
    process = _command(tmp_path, "train", "--json", *words, PREFECT_CLIENT_MAX_RETRIES="1")
    _wait_for(_training(tmp_path), process)
    _kill_server(process)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["global_step"] == 24000
    assert "Traceback" not in err
    assert err.count(_UNTOLD) == 1
    assert max(map(len, err.splitlines())) < 300  # Prefect shows an event in 3,000 characters


def test_a_kept_server_that_goes_away_costs_a_line(tmp_path: Path, api: EmbeddedAPI) -> None:
    """The same where PREFECT_API_URL named a server, which is not there any more when the run ends."""
    assert api.answers(180)
    process = _command(
        tmp_path, "train", "--json", *_long(tmp_path),
        PREFECT_API_URL=api.url, PREFECT_CLIENT_MAX_RETRIES="1",
    )  # fmt: skip
    _wait_for(_training(tmp_path), process)
    assert _server_of(process.pid) is None
    api.close()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["status"] == "finished"
    assert "Traceback" not in err
    assert err.count(_UNTOLD) == 1


def test_a_stop_is_a_stop_without_an_api(tmp_path: Path) -> None:
    """SIGTERM while nobody answers: committed, exit code 75."""
    words = _long(tmp_path, "experiment.total_timesteps=2000000")
    process = _command(tmp_path, "train", *words, PREFECT_CLIENT_MAX_RETRIES="1")
    _wait_for(_training(tmp_path), process)
    _kill_server(process)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    assert record_of(tmp_path / "runs/mine")["status"] == "interrupted"


def test_the_server_ends_with_a_killed_command(tmp_path: Path) -> None:
    """SIGKILL of the command leaves no server behind."""
    process = _command(tmp_path, "train", *_long(tmp_path, "experiment.total_timesteps=2000000"))
    _wait_for(_training(tmp_path), process)
    server = _server_of(process.pid)
    assert server is not None
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{server}/cmdline").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_in_a_profile_is_used(tmp_path: Path) -> None:
    """Where Prefect's own profile names a server, none is embedded."""
    (tmp_path / "profiles.toml").write_text(
        'active = "lab"\n[profiles.lab]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    )
    code = """if True:
        from rl_research.orchestration.embedded_api import embed_api
        with embed_api() as api:
            print(api)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env=environment(PREFECT_HOME=str(tmp_path)),
    )  # fmt: skip
    assert done.stdout == "None\n"


def test_a_mistake_found_meanwhile_takes_it_back(tmp_path: Path) -> None:
    """If what is made ready raises, the server is gone, and so is every trace in the environment."""
    code = """if True:
        import os
        from rl_research.orchestration.embedded_api import embed_api
        os.environ["NO_PROXY"] = "mine"
        before = dict(os.environ)
        try:
            with embed_api() as api:
                assert os.environ["PREFECT_API_URL"] == api.url
                raise ValueError
        except ValueError:
            print(api._server.poll() is None, dict(os.environ) == before)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env=environment(PREFECT_HOME=str(tmp_path)),
    )  # fmt: skip
    assert done.stdout == "False True\n"
