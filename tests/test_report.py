"""One page per run: complete when the run is, honest when it is not, never loading anything."""

from __future__ import annotations

import base64
import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import yaml

from rl_research.errors import ConfigError
from rl_research.report import figures
from rl_research.report.page import Run, duration, summary_markdown, write_report

RECORD = {
    "run_id": "cartpole_a",
    "status": "finished",
    "name": "cartpole_ppo",
    "global_step": 100_096,
    "total_timesteps": 100_000,
    "parameters_sha256": "9b1c" * 16,
    "checkpoint": "runs/cartpole_a/checkpoints/step-100096",
    "scores": {"mean": 500.0, "std": 0.0, "episodes": 100},
    "published": {"mean": 500.0, "std": 0.0, "source": "RL Baselines3 Zoo"},
    "wandb": {"id": "cartpole_a", "mode": "offline", "dir": "runs/a/wandb/offline-run-1", "url": None},
    "flow_run_id": "0192f1b2",
    "flow_run_url": None,
    "seconds": 112.4,
    "versions": {"rl_research": "0.1.0", "torch": "2.13.0"},
    "git": {"commit": "1f2e3d4c5b6a", "dirty": True},
    "algorithm": "ppo",
    "env": "CartPole-v1",
    "seed": 0,
    "reward_threshold": 475.0,
    "started_at": "2026-11-22T14:01:09+00:00",
    "finished_at": "2026-11-22T15:03:01+01:00",
}
CONFIG = {
    "run_id": "cartpole_a",
    "experiment": {"seed": 0, "name": None},
    "algorithm": {"name": "ppo", "params": {"learning_rate": "lin_0.001", "n_steps": 32}},
    "wandb": {"tags": ["a", "b"]},
}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        """Note the tag with its attributes."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        """Note the text."""
        self.words.append(data)

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def run_folder(path, returns=None, **changes):
    """The folder of a CartPole run, as complete as a run leaves it."""
    path.mkdir(parents=True, exist_ok=True)
    returns = [500.0] * 100 if returns is None else returns
    (path / "run.json").write_text(json.dumps({**RECORD, **changes}))
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (path / "overrides.txt").write_text("experiment=cartpole_ppo\nwandb.tags=[a, b]\n")
    scores = {"mean": float(np.mean(returns)), "std": float(np.std(returns)), "returns": returns}
    scores |= {"episodes": len(returns), "first_seed": 1_000_000, "deterministic": True}
    (path / "scores.json").write_text(json.dumps(scores))
    progress(path, [[step, 20 + step / 220, 0.01] for step in range(256, 100_001, 256)])
    evaluations(path, np.linspace([100.0] * 10, [500.0] * 10, 10) + np.arange(10))
    for step in (75_008, 100_096):
        folder = path / "checkpoints" / f"step-{step:09d}"
        folder.mkdir(parents=True, exist_ok=True)
        files = {"model.zip": {"size": 137_183, "sha256": "ab" * 32}}
        manifest = {"global_step": step, "created_at": "2026-11-22T14:02:11Z", "files": files}
        manifest["parameters_sha256"] = f"{step}cafe"
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return path


def progress(path, rows, header=("global_step", "rollout/ep_rew_mean", "train/approx_kl")):
    """Write *rows* as the metrics of a run."""
    with (path / "progress.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def evaluations(path, results):
    """Write *results* as Stable-Baselines3 does, evaluated every 10,000 steps."""
    steps = 10_000 * np.arange(1, len(results) + 1)
    np.savez(path / "evaluations.npz", timesteps=steps, results=results, ep_lengths=results)


def page_of(path) -> Page:
    """Write the report and read it."""
    return Page(write_report(path).read_text("utf-8"))


def test_a_finished_run_fills_the_page(tmp_path):
    """Score, interval, verdict, figures, checkpoints, configuration and commands are there."""
    page = page_of(run_folder(tmp_path / "run"))
    for words in (
        "cartpole_ppo PPO CartPole-v1 seed 0 finished 22 November 2026, 14:03 UTC",
        "500.0 ± 0.0",
        "100 episodes on held-out seeds 1000000 to 1000099, deterministic policy",
        "95% interval of the mean: 500.0 to 500.0",
        "It equals the published mean. CartPole-v1 is solved: its threshold is 475.0.",
        "not how another seed would train",
        "RL Baselines3 Zoo",
        "100,096",
        "1 min 52 s",
        "Every one of 100 episodes returned 500.0.",
        "how far an update moved the policy",
        "137 kB",
        "75008cafe",
        "rl-research train experiment=cartpole_ppo 'wandb.tags=[a, b]'",
        "wandb leet run runs/a/wandb/offline-run-1",
        "rl-research sync runs/a/wandb",
        "params.learning_rate",
        "with uncommitted changes",
        "torch 2.13.0",
    ):
        assert words in page.text
    assert len(page.all("svg")) == 4


def test_the_page_loads_nothing(tmp_path):
    """Only the anchors to W&B and Prefect point to a network, and the page forbids the rest."""
    wandb = {**RECORD["wandb"], "mode": "online", "url": "https://wandb.ai/me/p/runs/cartpole_a"}
    folder = run_folder(tmp_path, wandb=wandb, flow_run_url="http://127.0.0.1:4200/runs/1")
    (folder / "videos").mkdir()
    (folder / "videos/a.mp4").write_bytes(b"film")
    html = write_report(folder).read_text()
    remote = [(tag, a) for tag, a in Page(html).tags if re.search(r"(https?:)?//", str(a.values()))]
    assert [(tag, a["href"]) for tag, a in remote] == [
        ("a", "https://wandb.ai/me/p/runs/cartpole_a"),
        ("a", "http://127.0.0.1:4200/runs/1"),
    ]
    assert not Page(html).all("script")
    assert not re.search(r"@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_only_the_record_is_needed(tmp_path):
    """A nearly empty run.json alone makes a page that says what is missing."""
    (tmp_path / "run.json").write_text('{"run_id": "just_begun"}')
    text = page_of(tmp_path).text
    for words in ("just_begun", "not evaluated", "Nothing to draw", "There are none", "run.json"):
        assert words in text
    assert "None" not in text
    assert "nan" not in text
    assert Run(tmp_path).learning_curve_png() is None
    assert "![" not in summary_markdown(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe"])
def test_without_a_record_there_is_no_report(tmp_path, content):
    """A missing or unreadable run.json is one clear line, and nothing is left behind."""
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.json .*: a report is written from the folder"):
        write_report(tmp_path)
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob(".report*"))


@pytest.mark.parametrize("name", ["config.yaml", "overrides.txt", "progress.csv", "evaluations.npz", "scores.json"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\xff{]:", b"global_step,rollout/ep_rew_mean\n5"])
def test_a_missing_or_damaged_file_costs_only_its_part(tmp_path, name, content):
    """Whatever one file has become, the rest of the page is written."""
    folder = run_folder(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert "cartpole_ppo" in page_of(folder).text
    assert "cartpole\\_ppo" in summary_markdown(folder)


@pytest.mark.parametrize("damage", ["text", 7, [], {}, None, float("nan"), True, 10**400])
def test_odd_values_in_the_record_do_no_harm(tmp_path, damage):
    """Any field of run.json may be of any type: what the others say is still on the page."""
    for key in RECORD:
        (tmp_path / "run.json").write_text(json.dumps({**RECORD, key: damage}))
        words = {"name": "cartpole_ppo", "algorithm": "PPO", "env": "CartPole-v1", "global_step": "100,096"}
        text = page_of(tmp_path).text
        assert [word for name, word in words.items() if name != key and word not in text] == []
        assert key == "env" or "CartPole" in summary_markdown(tmp_path)
    odd = dict.fromkeys(("mean", "std", "episodes", "returns", "first_seed", "deterministic"), damage)
    (tmp_path / "scores.json").write_text(json.dumps(odd))
    assert "CartPole-v1" in page_of(tmp_path).text
    folder = tmp_path / "checkpoints/step-1"
    folder.mkdir(parents=True)
    keys = ("global_step", "created_at", "files", "parameters_sha256")
    (folder / "manifest.json").write_text(json.dumps(dict.fromkeys(keys, damage)))
    assert "CartPole-v1" in page_of(tmp_path).text


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[256, 21.5, ""]],
        [[256, "nan", "nan"], [512, "inf", "-inf"]],
        [[256, "", ""], [512, 30, ""], [768, "", 0.2], [1024, "what"]],
        [[512, 1e300, -1e300], [512, 3, 4], [256, 1, 2]],
    ],
)
def test_short_and_broken_progress_is_drawn_as_far_as_it_goes(tmp_path, rows):
    """No row, one row, gaps, words and what is not finite: a page in every case."""
    folder = run_folder(tmp_path)
    (folder / "evaluations.npz").unlink()
    progress(folder, rows)
    assert "Learning curve" in page_of(folder).text
    summary_markdown(folder)


def test_values_that_are_not_finite_are_counted(tmp_path):
    """A loss that became NaN is named on the page rather than silently left out."""
    progress(run_folder(tmp_path), [[1, 5, 0.1], [2, 5, "nan"], [3, 5, "inf"]])
    assert "2 not finite" in page_of(tmp_path).text


@pytest.mark.parametrize(
    ("results", "row"),
    [
        (np.zeros((0, 5)), None),
        (np.full((2, 4), np.nan), None),
        (np.ones((3, 1)), "30,000 1.00 ± 0.00 – 1"),
        (np.ones(3), None),
    ],
)
def test_evaluations_of_any_shape(tmp_path, results, row):
    """None, undefined, single-episode and flat evaluations leave a page without false intervals."""
    folder = run_folder(tmp_path)
    evaluations(folder, results)
    (folder / "scores.json").unlink()
    text = page_of(folder).text
    if row is None:
        assert "The evaluations as a table" not in text
    else:
        assert row in text


def test_pickles_in_evaluations_are_not_opened(tmp_path):
    """An evaluations.npz that holds Python objects is left out, never unpickled."""
    folder = run_folder(tmp_path)
    objects = np.array([[print], [print]], dtype=object)
    np.savez(folder / "evaluations.npz", timesteps=np.arange(2), results=objects)
    assert "The evaluations as a table" not in page_of(folder).text


@pytest.mark.parametrize(
    ("returns", "verdict"),
    [
        (list(range(460, 500)), "20.5 below the published mean, which lies outside the interval"),
        ([480.0, 500.0] * 20, "10.0 below the published mean, which lies outside"),
        ([500.0, 500.0, 470.0], "10.0 below the published mean, which lies inside the interval"),
        ([510.0, 520.0], "15.0 above the published mean. CartPole-v1 is solved"),
        ([9.0] * 5, "CartPole-v1 is not solved"),
    ],
)
def test_the_score_is_compared_in_plain_words(tmp_path, returns, verdict):
    """Above or below, inside or outside the interval, solved or not; no interval of two."""
    text = page_of(run_folder(tmp_path, returns=returns)).text
    assert verdict in text
    assert ("95% interval of the mean" in text) == (len(returns) >= 3)


def test_negative_scores_keep_a_true_minus(tmp_path):
    """Pendulum's returns are shown with a minus sign and with decimals that fit."""
    returns = list(np.random.default_rng(0).normal(-150, 80, 100))
    folder = run_folder(tmp_path, returns=returns, published=None, reward_threshold=None)
    text = page_of(folder).text
    assert "\N{MINUS SIGN}15" in text
    assert "published" not in text.lower()
    assert "threshold" not in text.lower()


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    """An interrupted run shows where it stopped, its last evaluation and how it is resumed."""
    folder = run_folder(tmp_path, status="interrupted", global_step=51_200, scores=None)
    (folder / "scores.json").unlink()
    text = page_of(folder).text
    assert "stopped at step 51,200 of 100,000" in text
    assert "'wandb.tags=[a, b]' run_id=cartpole_a" in text
    assert "Score so far 504.5 ± 2.9" in text
    assert "evaluated while training at step 100,000" in text


def test_everything_inserted_is_escaped(tmp_path):
    """A name, setting, metric or address that is markup stays text, and no script is linked."""
    evil = "<script>alert(1)</script>\"'><img src=x onerror=1>"
    wandb = {"id": evil, "mode": "offline", "dir": evil, "url": "javascript:alert(1)"}
    texts = dict.fromkeys(("name", "run_id", "status", "algorithm", "env", "finished_at"), evil)
    others = {"versions": {evil: evil}, "git": {"commit": evil}, "flow_run_url": f"https://x/{evil}"}
    published = {"mean": 1, "source": evil}
    folder = run_folder(tmp_path, **texts, **others, wandb=wandb, published=published)
    (folder / "config.yaml").write_text(yaml.safe_dump({evil: {evil: evil}}))
    (folder / "overrides.txt").write_text(evil)
    progress(folder, [[1, 2, 3]], ["global_step", "rollout/ep_rew_mean", f"train/{evil}"])
    (folder / "videos").mkdir()
    (folder / "videos" / '"><script>.mp4').write_bytes(b"film")
    page = page_of(folder)
    assert not page.all("script")
    assert not page.all("img")
    assert not [a for a in page.all("a") if not re.match(r"\./|[a-z]+\.[a-z]+$", a["href"])]
    assert evil in page.text
    markdown = summary_markdown(folder)
    prose = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
    assert not re.search(r"(?<!\\)<(?!https?:)", prose)
    assert "javascript:" not in markdown


def test_names_with_spaces_and_other_alphabets(tmp_path):
    """Unicode and spaces pass through folder, names, commands and the title."""
    folder = run_folder(tmp_path / "mein Lauf é 試験", name="Überfahrt \N{SNOWMAN} 試験")
    (folder / "overrides.txt").write_text("experiment.name=Überfahrt 試験\n", "utf-8")
    page = page_of(folder)
    assert page.text.count("Überfahrt \N{SNOWMAN} 試験") == 2
    assert "rl-research train 'experiment.name=Überfahrt 試験'" in page.text


def test_a_lone_surrogate_does_not_stop_the_page(tmp_path):
    """Text that UTF-8 cannot hold is replaced."""
    (tmp_path / "run.json").write_text('{"name": "broken \\ud800 name"}')
    assert "broken ? name" in page_of(tmp_path).text


def test_a_hundred_thousand_rows_make_a_small_page(tmp_path):
    """Long runs are thinned to means with their range: the page stays below two megabytes."""
    rng = np.random.default_rng(0)
    names = [f"train/metric_{i}" for i in range(10)]
    table = np.column_stack([np.arange(100_000) * 64, rng.normal(size=(100_000, 11))])
    folder = run_folder(tmp_path)
    header = ",".join(["global_step", "rollout/ep_rew_mean", *names])
    np.savetxt(folder / "progress.csv", table, "%.6g", ",", header=header, comments="")
    evaluations(folder, rng.normal(size=(1_000, 5)))
    path = write_report(folder)
    assert path.stat().st_size < 2_000_000
    page = Page(path.read_text())
    assert "Also in progress.csv : train/metric_8, train/metric_9." in page.text
    assert "10,000,000" in page.text  # the last evaluation survives the thinning


def test_a_peak_survives_the_thinning():
    """One outlier in a long series is still visible in the band around the line."""
    values = np.zeros(50_000)
    values[31_111] = 100.0
    drawn = figures.svg(figures.metric(figures.Series(np.arange(50_000.0), values)), 200, 140, "m", "")
    assert drawn.count("\n") < 5_000
    assert ">100<" in drawn


def test_the_same_folder_gives_the_same_page(tmp_path):
    """A report is a function of the folder, so that a changed page means a changed run."""
    folder = run_folder(tmp_path)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert not list(folder.glob(".report*"))


def test_ids_are_unique(tmp_path):
    """Several inline figures do not share an id, and references within them lead somewhere."""
    page = page_of(run_folder(tmp_path))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    uses = {attributes["href"].removeprefix("#") for attributes in page.all("use")}
    assert uses <= set(ids)


def test_the_page_is_accessible(tmp_path):
    """Language, one h1, no skipped heading, a label on every figure, headers in every table."""
    page = page_of(run_folder(tmp_path))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert page.all("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert page.all("th")


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, as WCAG 2.1 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_and_dark(tmp_path):
    """Text has a contrast of 4.5 to 1 and lines of 3 to 1, on paper and panel, light and dark."""
    html = write_report(run_folder(tmp_path)).read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    )
    light |= {f"fig-{role}": colour for role, colour in figures.COLOURS.items()}
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for role in colours.keys() - {"paper", "panel", "line", "fig-grid"}:
            for ground in ("paper", "panel"):
                assert contrast(colours[role], colours[ground]) >= 4.5, (role, ground)


def test_the_newest_video_is_embedded(tmp_path):
    """A small film is part of the page; of several the newest."""
    folder = run_folder(tmp_path)
    (folder / "videos").mkdir()
    for name in ("step-1.mp4", "step-2.mp4"):
        (folder / "videos" / name).write_bytes(name.encode())
    (folder / "videos/empty.mp4").touch()
    (video,) = page_of(folder).all("video")
    assert base64.b64decode(video["src"].removeprefix("data:video/mp4;base64,")) == b"step-2.mp4"


def test_a_large_video_is_linked(tmp_path):
    """A film of more than 8 MB stays a file beside the page."""
    folder = run_folder(tmp_path)
    (folder / "videos").mkdir()
    with (folder / "videos/long film.mp4").open("wb") as file:
        file.truncate(8_000_001)
    page = page_of(folder)
    assert not page.all("video")
    assert "videos/long%20film.mp4" in [a["href"] for a in page.all("a")]


def test_the_summary_is_short_markdown_with_a_picture(tmp_path):
    """Score, comparison, learning curve, links and the command, for an orchestrator's page."""
    wandb = {"mode": "online", "url": "https://wandb.ai/me/p/runs/cartpole_a"}
    markdown = summary_markdown(run_folder(tmp_path, wandb=wandb))
    assert markdown.startswith("# cartpole\\_ppo\n")
    assert "**500.0 ± 0.0**" in markdown
    assert "It equals the published mean." in markdown
    assert "[W&B run](<https://wandb.ai/me/p/runs/cartpole_a>)" in markdown
    assert "    rl-research train experiment=cartpole_ppo" in markdown
    (picture,) = re.findall(r"!\[Learning curve\]\(data:image/png;base64,([^)]+)\)", markdown)
    assert base64.b64decode(picture) == Run(tmp_path).learning_curve_png()
    assert base64.b64decode(picture).startswith(b"\x89PNG")


def test_figures_leave_no_trace_in_matplotlib(tmp_path):
    """The user's own style and pyplot's figures are as they were."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(run_folder(tmp_path))
    assert dict(matplotlib.rcParams) == before


def test_importing_the_report_is_cheap():
    """What draws, computes intervals and fills templates is imported when it is used."""
    heavy = "{'matplotlib', 'scipy', 'jinja2', 'torch', 'pandas'}"
    code = f"import sys, rl_research.report.page; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4, "4 s"), (112.4, "1 min 52 s"), (3599.9, "1 h 00 min"), (7500, "2 h 05 min"), (None, "–")]
)
def test_durations_read_like_durations(seconds, text):
    """Seconds become what one would say."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(500.0, "500.0"), (-147.73, "\N{MINUS SIGN}147.7"), (0.9146, "0.915"), (-0.0001, "0.000"), (4e9, "4e+09")],
)
def test_scores_have_decimals_that_fit(value, text):
    """Large scores have one decimal, small ones three, and there is no minus zero."""
    assert figures.number(value) == text
