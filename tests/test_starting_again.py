"""Promises about a run that is started again: afresh when told, refused without a trace, never torn."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import environment, outcome, record_of, steps_committed, tiny, upload, wandb_records

from rl_research import checkpoints
from rl_research.cli import command
from rl_research.config import Experiment, load_config
from rl_research.errors import ConfigError, Interrupted, StorageError
from rl_research.report import page
from rl_research.runs import check_same_experiment
from rl_research.runs.run import Run, open_run
from rl_research.tracking import media
from rl_research.training import stages
from rl_research.training.preparation import build
from rl_research.training.resume import find_resume_point, finished_result
from rl_research.training.trainer import Segment

_NORMALIZED = ("env.normalize=true", "env.n_envs=2")


def _train(overrides: list[str], stop_at: int | None = None) -> Path:
    config = load_config([*overrides, "wandb=disabled"])
    with open_run(Experiment(config, tuple(overrides))) as run:
        if stop_at is not None:

            def ask(step: int, _total: int) -> None:
                if step >= stop_at and not run.stop:
                    run.stop.receive(signal.SIGTERM, None)

            stages.train_run(run, ask)
        else:
            stages.score_checkpoint(run, stages.train_run(run))
    return config.run_dir


def test_never_starts_afresh_and_keeps_the_former_run(tmp_path: Path) -> None:
    """With ``resume=never`` a finished run is trained again; the former one stays, under another name."""
    run_dir = _train(tiny(tmp_path, "mine"))
    before = outcome(run_dir)
    again = [*tiny(tmp_path, "mine"), "resume=never"]
    assert finished_result(load_config(again)) is None
    assert outcome(_train(again)) == before
    assert outcome(tmp_path / "mine.replaced-1") == before


def test_never_is_refused_where_storage_would_bring_the_former_run_back(tmp_path: Path) -> None:
    """A store that holds checkpoints of the run is not overwritten silently."""
    words = [*tiny(tmp_path / "runs", "mine"), f"storage.url='{tmp_path / 'store'}'"]
    config = load_config([*words, "wandb=disabled"])
    with open_run(Experiment(config, tuple(words))) as run:
        upload(run, stages.train_run(run))
    with pytest.raises(ConfigError, match="resume=never"):
        _train([*words, "resume=never"])


@pytest.mark.parametrize("change", ["experiment.seed=7", "algorithm.params.gamma=0.5"])
def test_a_refused_start_changes_nothing(tmp_path: Path, change: str) -> None:
    """Another experiment under the same run_id is refused before a word in the run folder is changed."""
    run_dir = _train(tiny(tmp_path, "mine"))
    before = {p: p.read_bytes() for p in run_dir.iterdir() if p.is_file() and p.name != ".lease"}
    with pytest.raises(ConfigError, match=r"was .*, now"):
        _train([*tiny(tmp_path, "mine"), change])
    after = {p: p.read_bytes() for p in run_dir.iterdir() if p.is_file() and p.name != ".lease"}
    assert after == before


def test_a_refused_start_poisons_no_run_that_lies_in_storage(tmp_path: Path) -> None:
    """On another machine a wrong setting is refused, and the right command is not refused after it."""
    words = [f"storage.url='{tmp_path / 'store'}'"]
    first = [*tiny(tmp_path / "here", "mine"), *words]
    with open_run(Experiment(load_config([*first, "wandb=disabled"]), tuple(first))) as run:
        upload(run, stages.train_run(run))
    there = [*tiny(tmp_path / "there", "mine"), *words]
    with pytest.raises(ConfigError, match=r"was .*, now"):
        _train([*there, "experiment.seed=7"])
    assert not (tmp_path / "there").exists()
    assert outcome(_train(there)) == outcome(_train(first))


def test_a_finished_run_of_another_machine_has_its_steps_and_parameters(tmp_path: Path) -> None:
    """A run that exists in storage alone is fetched, and its record says what it came to."""
    first = [*tiny(tmp_path / "here", "mine"), f"storage.url='{tmp_path / 'store'}'"]
    with open_run(Experiment(load_config([*first, "wandb=disabled"]), tuple(first))) as run:
        checkpoint = stages.train_run(run)
        upload(run, checkpoint)
    there = _train([*tiny(tmp_path / "there", "mine"), f"storage.url='{tmp_path / 'store'}'"])
    record = record_of(there)
    assert (record["status"], record["global_step"]) == ("finished", checkpoint.global_step)
    assert record["parameters_sha256"] == checkpoint.manifest.parameters_sha256


def test_an_extended_run_says_how_it_came_to_be(tmp_path: Path) -> None:
    """Record, manifest and page name the first budget; the page's commands, run in order, lead to the same bits."""
    _train(tiny(tmp_path, "mine"))
    longer = ["experiment.total_timesteps=256"]
    run_dir = _train([*tiny(tmp_path, "mine"), *longer])
    before = record_of(run_dir)
    (newest,) = checkpoints.local_checkpoints(run_dir)[-1:]
    assert newest.manifest.model_extra["extensions"] == [[before["segments"][1]["from_step"], 256]]  # type: ignore[index]
    commands = page.Run(run_dir).command.splitlines()
    assert [shlex.split(line)[-2:] for line in commands] == [
        [f"experiment.total_timesteps={budget}", "run_id=mine-again"]
        for budget in (before["segments"][0]["total_timesteps"], 256)
    ]
    assert "extended when it had ended" in page.Run(run_dir).repetition
    for line in commands:
        again = _train(shlex.split(line)[2:])
    assert record_of(again)["parameters_sha256"] == before["parameters_sha256"]


def test_a_budget_that_changed_while_training_is_no_repetition(tmp_path: Path) -> None:
    """Where the schedules were stretched in the middle, the page promises no SHA-256."""
    with pytest.raises(Interrupted):
        _train(tiny(tmp_path, "mine"), stop_at=32)
    run_dir = _train([*tiny(tmp_path, "mine"), "experiment.total_timesteps=256"])
    assert "no command repeats that" in page.Run(run_dir).repetition


def test_a_stop_before_the_first_rollout_changes_no_bit(tmp_path: Path) -> None:
    """Committed at step 0 and resumed, a normalised run sees its first observation once."""
    whole = _train(tiny(tmp_path, "whole", *_NORMALIZED))
    with pytest.raises(Interrupted):
        _train(tiny(tmp_path, "stopped", *_NORMALIZED), stop_at=0)
    assert steps_committed(tmp_path / "stopped") == [0]
    assert outcome(_train(tiny(tmp_path, "stopped", *_NORMALIZED))) == outcome(whole)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"global_step": "x"}'])
def test_a_damaged_record_hides_no_checkpoint(tmp_path: Path, text: str) -> None:
    """Without a readable run.json the run goes on from its checkpoints."""
    whole = outcome(_train(tiny(tmp_path, "whole")))
    with pytest.raises(Interrupted):
        _train(tiny(tmp_path, "mine"), stop_at=32)
    (tmp_path / "mine" / "run.json").write_text(text)
    assert outcome(_train(tiny(tmp_path, "mine"))) == whole


def test_a_run_folder_that_vanishes_is_noticed(tmp_path: Path) -> None:
    """A run whose folder is removed while it goes on ends with an error, not with a hollow success."""
    overrides = tiny(tmp_path, "mine", "experiment.total_timesteps=320")
    config = load_config([*overrides, "wandb=disabled"])

    def remove(step: int, _total: int) -> None:
        if step >= 64:
            shutil.rmtree(config.run_dir, ignore_errors=True)

    with pytest.raises(StorageError, match="removed or replaced"), open_run(Experiment(config)) as run:
        stages.train_run(run, remove)


_WORKERS = """
import sys, threading
import gymnasium as gym
from rl_research.config import compose_experiment
from rl_research.runs import open_run
from rl_research.training import stages

class Locked(gym.Wrapper):
    def __init__(self, env):
        super().__init__(env)
        self.lock = threading.Lock()

def locked(**kwargs):
    return Locked(gym.make("CartPole-v1").unwrapped)

gym.register("Locked-v0", entry_point=locked, max_episode_steps=40)

if __name__ == "__main__":
    with open_run(compose_experiment(sys.argv[1:])) as run:
        print("training", flush=True)
        stages.train_run(run)
"""


@pytest.mark.slow  # worker processes import everything anew
def test_workers_with_an_uncapturable_environment_train_on(tmp_path: Path) -> None:
    """In worker processes, too, an environment that cannot be pickled means replay, not death."""
    (tmp_path / "program.py").write_text(_WORKERS)
    words = tiny(
        tmp_path, "mine", "env.id=Locked-v0", "env.vec_env=subproc", "env.n_envs=2",
        "evaluation.enabled=false", "wandb=disabled",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", *words], env=environment(), timeout=300, check=False
    )
    assert done.returncode == 0
    manifest = json.loads(max((tmp_path / "mine/checkpoints").glob("step-*/manifest.json")).read_text())
    assert manifest["resume_mode"] == "replay"


@pytest.mark.slow  # worker processes import everything anew
def test_ctrl_c_reaches_the_main_process_only(tmp_path: Path) -> None:
    """SIGINT to the whole process group, as a terminal sends it, ends with a committed checkpoint."""
    (tmp_path / "program.py").write_text(_WORKERS)
    words = tiny(
        tmp_path, "mine", "env.vec_env=subproc", "env.n_envs=2", "evaluation.enabled=false",
        "experiment.total_timesteps=10_000_000", "wandb=disabled",
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", *words],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for_a_checkpoint(tmp_path / "mine", process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Interrupted" in err
    assert "BrokenPipe" not in err
    assert record_of(tmp_path / "mine")["status"] == "interrupted"
    assert command.main(["verify", str(tmp_path / "mine")]) == 0


def _wait_for_a_checkpoint(run_dir: Path, process: subprocess.Popen[str]) -> None:
    import time

    deadline = time.monotonic() + 240
    while not steps_committed(run_dir) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint in four minutes"
        time.sleep(0.2)


def test_an_evaluation_cut_off_by_a_stop_scores_its_checkpoint_later(tmp_path: Path) -> None:
    """A checkpoint committed in the middle of an evaluation gets that evaluation's score on resuming."""
    words = ("checkpoint.keep_last=9", "checkpoint.keep_best=9", "wandb=disabled")
    whole = _train([*tiny(tmp_path, "whole"), *words])
    overrides = [*tiny(tmp_path, "cut"), *words]
    config = load_config(overrides)

    def stop_in_the_evaluation(run: Run) -> None:
        training = Segment(run, *build(config), lambda step, total: None, None, find_resume_point(run), ())
        assert training.evaluations is not None
        asked = training.evaluations.stop

        def stop() -> bool:
            if training.model.num_timesteps >= 32 and not run.stop:
                run.stop.receive(signal.SIGTERM, None)
            return asked()

        training.evaluations.stop = stop
        try:
            training.finish()
        finally:
            training.close()

    with pytest.raises(Interrupted), open_run(Experiment(config, tuple(overrides))) as run:
        stop_in_the_evaluation(run)
    assert _scores(config.run_dir)[32] is None
    _train(overrides)
    assert _scores(config.run_dir) == _scores(whole)
    assert _scores(whole)[32] is not None
    assert outcome(config.run_dir) == outcome(whole)


def _scores(run_dir: Path) -> dict[int, Any]:
    found = checkpoints.local_checkpoints(run_dir)
    return {c.global_step: c.manifest.scores and c.manifest.scores.mean for c in found}


def test_a_film_is_logged_once_however_often_the_run_is_killed(tmp_path: Path) -> None:
    """After kills between film and checkpoint, and between film and row, W&B has each film once."""
    words = (
        "video.enabled=true", "video.every=32", "video.max_steps=4", "checkpoint.every=0",
        "evaluation.enabled=false",
    )  # fmt: skip
    config = load_config([*tiny(tmp_path, "films"), *words])

    def killed(step: int, _total: int) -> None:
        if step >= 64:
            raise RuntimeError("as a kill would, without committing")

    with pytest.raises(RuntimeError), open_run(Experiment(config)) as run:
        stages.train_run(run, killed)
    assert _films(config.run_dir) == [("eval/video", 32), ("eval/video", 64)]
    with open_run(Experiment(config)) as run:
        checkpoint = stages.train_run(run)
        media.write_video(  # what a kill between a film and its row leaves
            np.zeros((2, 16, 16, 3), np.uint8), run.dir / "videos" / "final" / "video-96.mp4"
        )
        stages.film_checkpoint(run, checkpoint)
    expected = [("eval/video", 32), ("eval/video", 64), ("final/video", 96)]
    assert _films(config.run_dir) == expected
    with open_run(Experiment(config)) as run:
        stages.film_checkpoint(run, stages.train_run(run))
    assert _films(config.run_dir) == expected
    names = sorted(path.name for path in (config.run_dir / "videos").rglob("*.mp4"))
    assert names == ["video-32.mp4", "video-64.mp4", "video-96.mp4"]


def _films(run_dir: Path) -> list[tuple[str, int]]:
    """Name and step of each film in the run's W&B segments."""
    found = []
    for record in wandb_records(run_dir):
        if record.WhichOneof("record_type") == "history":
            cells = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            films = [name for name, value in cells.items() if value == '"video-file"']
            step = int(cells["global_step"])
            found += [(name.removesuffix("/_type"), step) for name in films]
    return found


@pytest.mark.parametrize("before", [None, "x", [1], -1])
def test_checkpoints_without_a_configuration_are_a_line(tmp_path: Path, before: object) -> None:
    """A manifest is checked as a whole, but its configuration may be anything."""
    config = load_config(tiny(tmp_path, "x", "env=cartpole", "algorithm=ppo"))
    with pytest.raises(ConfigError, match="run_id=x: this run's checkpoints do not say what was trained"):
        check_same_experiment(config, before)
