"""What docs/algorithms.md says of algorithms, spaces and resumes is so, cell by cell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from helpers import outcome, record_of, tiny
from stable_baselines3.her import HerReplayBuffer
from test_resume import _run, _stopped

from rl_research.config import Config, algorithm_class, load_config, takes_masks
from rl_research.errors import ConfigError
from rl_research.training import envs, preflight, replay_buffer
from rl_research.training.preparation import build

_PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"
_POLICIES = {"arrays": "Mlp", "images": "Cnn", "Dict": "MultiInput"}
_OBSERVATIONS = {"arrays": "vector", "images": "image", "Dict": "dict"}


#: What else is needed to train with a line of the second table.
_BESIDE = {
    "algorithm.params.use_sde=true": ["env=pendulum"],
    "algorithm.params.replay_buffer_class=her": [
        "algorithm=sac", "env.id=space_envs:Goal-v0", "algorithm.policy=MultiInputPolicy", "env.max_episode_steps=8",
    ],
    "env=pong": [
        "algorithm.policy=CnnPolicy", "env.max_episode_steps=200",
        "algorithm.params.policy_kwargs.features_extractor_kwargs={features_dim: 8}",
    ],
}  # fmt: skip


def _tables() -> list[dict[tuple[str, str], str]]:
    """The cells of each of the page's tables, by row and column."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", _PAGE.read_text(), re.MULTILINE):
        head, _, *body = [re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()]
        found.append({(row[0].strip("`"), c): cell for row in body for c, cell in zip(head[1:], row[1:], strict=True)})
    return found


_CELLS, _AROUND = _tables()


def _words(algorithm: str, space: str) -> list[str]:
    """Overrides that train *algorithm* in *space*, the other one of observations and actions as it can be."""
    can = next(a for a in ("Discrete", "Box") if _CELLS[algorithm, a] == "exact")
    seen, actions = (space, can) if space in _POLICIES else ("arrays", space)
    kind = "Masked" if takes_masks(algorithm_class(algorithm)) and actions != "Box" else "Spaces"
    lstm = "Lstm" if algorithm == "recurrent_ppo" else ""
    features = (
        ["algorithm.params.policy_kwargs.features_extractor_kwargs={features_dim: 8}"] if seen == "images" else []
    )
    return [
        f"algorithm={algorithm}",
        f"env.id=space_envs:{kind}-v0",
        f"env.kwargs={{observations: {_OBSERVATIONS[seen]}, actions: {actions}}}",
        f"algorithm.policy={_POLICIES[seen]}{lstm}Policy",
        "experiment.total_timesteps=96",
        "env.max_episode_steps=8",
        *features,
    ]


def test_every_algorithm_has_its_row() -> None:
    """The page forgets no algorithm."""
    from rl_research.config import algorithms

    assert sorted({algorithm for algorithm, _ in _CELLS}) == algorithms.names()


@pytest.mark.slow
@pytest.mark.parametrize("cell", [key for key, said in _CELLS.items() if said == "exact"], ids="-".join)
def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path, cell: tuple[str, str]) -> None:
    """Where the page says exact, a run that was stopped and resumed has the bits of one that was not."""
    words = _words(*cell)
    undisturbed = _run(tiny(tmp_path, "whole", *words))
    overrides = tiny(tmp_path, "stopped", *words)
    _stopped(overrides, 33)
    assert outcome(_run(overrides)) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "said"), _AROUND.items(), ids=[row for row, _ in _AROUND])
def test_a_resume_is_what_the_page_says(tmp_path: Path, cell: tuple[str, str], said: str) -> None:
    """Each line of the second table is the `resume_mode` of its checkpoints, and all but boundary keep the bits."""
    words = [*_BESIDE.get(cell[0], []), cell[0], "evaluation.enabled=false"]
    overrides = tiny(tmp_path, "stopped", *words)
    stopped = _stopped(overrides, 33)
    (newest,) = (stopped / "checkpoints").glob(f"step-*{record_of(stopped)['global_step']}/manifest.json")
    assert json.loads(newest.read_text())["resume_mode"] == said
    resumed = outcome(_run(overrides))
    assert said == "boundary" or resumed == outcome(_run(tiny(tmp_path, "whole", *words)))


@pytest.mark.parametrize("cell", [key for key, said in _CELLS.items() if said == "–"], ids="-".join)
def test_what_an_algorithm_cannot_do_is_refused(tmp_path: Path, cell: tuple[str, str]) -> None:
    """Where the page says –, one line comes before anything is written."""
    with pytest.raises(ConfigError) as refused:
        preflight(load_config(tiny(tmp_path / "runs", "x", *_words(*cell))))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_episodes_that_a_boundary_resume_cuts_are_learned_from(tiny_config: Callable[..., Config]) -> None:
    """Hindsight replay takes goals from whole episodes; one that cannot go on counts as truncated."""
    her = ("algorithm.policy=MultiInputPolicy", "algorithm.params.replay_buffer_class=her", "env.max_episode_steps=9")
    starts = "algorithm.params.learning_starts=100"
    config = tiny_config("env.id=space_envs:Goal-v0", "algorithm=sac", "env.n_envs=2", *her, starts)
    env, model = build(config)
    with closing(env):
        model.learn(2 * 12)
        buffer = replay_buffer.buffer_of(model)
        assert isinstance(buffer, HerReplayBuffer)
        assert (buffer.ep_length[11] == 0).all()
        replay_buffer.truncate_last_row(model)
        assert (buffer.ep_length[11] > 0).all()
        assert buffer.timeouts[11].tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["algorithms", "environments"])
def test_the_pages_commands_pass_their_checks(page: str, tmp_path: Path) -> None:
    """Every command of the two pages is complete and gets to the point where training would begin."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", _PAGE.with_name(f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", "").splitlines()]
    assert commands
    for words in commands:
        assert words[:2] == ["rl-research", "train"]
        own = [word.replace("my_module:MyGoal-v0", "space_envs:Goal-v0") for word in words[2:]]
        with preflight(load_config([*own, f"runs_dir='{tmp_path}'", "env.n_envs=2"])) as ready:
            assert ready.config.env.n_envs == 2


# ---------------------------------------------------------------- masks, goals, workers


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["env.id=space_envs:Masked-v0"], "ppo would not heed its action_masks(); choose algorithm=maskable_ppo."),
        (["env.id=CartPole-v1", "algorithm=maskable_ppo"], "CartPole-v1 has no method action_masks()"),
        (["env.id=space_envs:NoneAllowed-v0", "algorithm=maskable_ppo"], "its action_masks() allows no action."),
        (["env.id=space_envs:TooFew-v0", "algorithm=maskable_ppo"], "gives 2 flags where Discrete(3) needs 3"),
        (["env=cartpole", "algorithm=ars", "env.n_envs=2"], "env.n_envs=2: ARS plays one episode at a time"),
        (["env.start_method=fork"], "env.start_method=fork: there are no workers to start; add env.vec_env=subproc."),
        (
            ["env.id=space_envs:Goal-v0", "algorithm=sac", "algorithm.policy=MultiInputPolicy", "env.n_envs=20",
             "algorithm.params.replay_buffer_class=her"],
            "the first ends after 160 steps. Set algorithm.params.learning_starts=160 or more.",
        ),
        (
            ["algorithm=sac", "env=pendulum", "algorithm.params.replay_buffer_class=her",
             "algorithm.params.replay_buffer_kwargs.copy_info_dict=true"],
            "HerReplayBuffer has no argument 'copy_info_dict'",
        ),
        (
            ["algorithm=sac", "env=pendulum", "algorithm.params.replay_buffer_class=her",
             "algorithm.params.replay_buffer_kwargs.goal_selection_strategy=futur"],
            "there is no such strategy. Did you mean 'future'?",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_a_line_before_training(tmp_path: Path, words: list[str], said: str) -> None:
    """What would fail in the middle of a rollout, or train on nonsense, is told before anything is written."""
    with pytest.raises(ConfigError) as refused:
        preflight(load_config([f"runs_dir='{tmp_path / 'runs'}'", *words]))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_masks_that_nobody_heeds_can_be_asked_for(tmp_path: Path) -> None:
    """With ``env.check=false`` another algorithm trains where actions are masked."""
    with preflight(load_config([f"runs_dir='{tmp_path}'", "env.id=space_envs:Masked-v0", "env.check=false"])) as ready:
        assert ready.config.algorithm.name == "ppo"


@pytest.mark.slow
def test_a_game_of_several_lives_is_one_episode(tiny_config: Callable[..., Config]) -> None:
    """Within AtariWrapper a lost life ends an episode for learning; scores and seeds are the whole game's."""
    words = ("env.id=BreakoutNoFrameskip-v4", "env.wrappers=[Monitor, AtariWrapper]", "algorithm.policy=CnnPolicy")
    kwargs = "algorithm.params.policy_kwargs={features_extractor_kwargs: {features_dim: 8}}"
    config = tiny_config(*words, kwargs, "env.vec_wrappers=[{VecFrameStack: {n_stack: 4}}]")
    for make in (envs.training_env, partial(envs.evaluation_env, first_seed=7, copies=1)):
        with closing(make(config)) as env:
            assert env.observation_space.shape == (4, 84, 84)
            env.seed(0)
            env.action_space.seed(0)
            env.reset()
            lives, done, infos = 0, [False], [{}]
            while "episode" not in infos[0]:
                _, _, done, infos = env.step([env.action_space.sample()])
                lives += bool(done[0])
            assert lives == 5
            assert infos[0]["episode"]["l"] > 5 * 4
            if env.has_attr("next_seed"):
                assert env.get_attr("next_seed") == [9]


@pytest.mark.slow
def test_a_film_and_a_replayed_evaluation_heed_masks_and_states(tmp_path: Path) -> None:
    """A masked and a recurrent policy are filmed, and their checkpoints are verified with their scores."""
    from rl_research import checkpoints
    from rl_research.training import verify

    for algorithm in ("maskable_ppo", "recurrent_ppo"):
        env = "space_envs:Masked-v0" if algorithm == "maskable_ppo" else "CartPole-v1"
        run_dir = _run(tiny(tmp_path, algorithm, f"algorithm={algorithm}", f"env.id={env}"))
        found = verify(checkpoints.find(str(run_dir)), evaluate=True, trust_env=True)
        assert found["scores"]["episodes"] == 4
