"""The files of a run's folder, read for a report.

Only ``run.json`` has to exist; whatever else is missing, short or damaged is left out, and so is each damaged
value of the record.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import yaml

from rl_research.checkpoints import FOLDER, Checkpoint, Scores, survey
from rl_research.errors import ConfigError
from rl_research.report.figures import Evaluation, Series
from rl_research.runs import DESCRIPTION, PROGRESS, RECORD, SCORES, RunRecord, read_record
from rl_research.statistics import Floats, bootstrap_interval
from rl_research.storage import Store

_MAX_EVALUATIONS = 200
T = TypeVar("T")


class RunFolder:
    """Contents of a run's folder, as far as they are there and whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = _record(folder)
        self.published = self.record.published
        in_record = self.record.scores and Scores.model_validate(self.record.scores.model_dump())
        self.scores = _read(folder / SCORES, lambda text: Scores.model_validate(json.loads(text))) or in_record
        self.metrics = _progress(folder / PROGRESS)
        self.evaluations = list(_evaluations(folder / "evaluations.npz"))
        self.returns = _floats(list(self.scores.returns) if self.scores else [])
        self.is_final = self.scores is not None and finite(self.scores.mean) is not None
        if not self.is_final and self.evaluations:
            self.returns = self.evaluations[-1].returns

    @property
    def name(self) -> str:
        """Name of the experiment, else of the run."""
        return self.record.name or self.record.run_id or self.folder.name

    @property
    def mean(self) -> float | None:
        """Mean return of the final evaluation, else of the last one while training."""
        stated = finite(self.scores.mean) if self.scores else None
        return float(self.returns.mean()) if stated is None and len(self.returns) else stated

    @property
    def std(self) -> float | None:
        """Standard deviation over the same episodes."""
        stated = finite(self.scores.std) if self.scores else None
        return float(self.returns.std()) if stated is None and len(self.returns) else stated

    @property
    def threshold(self) -> float | None:
        """Mean return from which the environment counts as solved."""
        return finite(self.record.reward_threshold)

    @property
    def steps_per_second(self) -> float | None:
        """Speed as Stable-Baselines3 last measured it, else over the whole run."""
        if fps := self.metrics.get("time/fps"):
            return float(fps.values[-1])
        steps, seconds = self.record.global_step, finite(self.record.seconds)
        return steps / seconds if steps and seconds else None

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Checkpoints in the folder, oldest first."""
        return survey(Store(self.folder / FOLDER))[0]

    @property
    def configuration(self) -> dict[str, dict[str, str]]:
        """Every setting, by its path within its section; settings of no section come first."""
        sections: dict[str, dict[str, str]] = {"run": {}}
        for path, value in _leaves(_read(self.folder / DESCRIPTION, yaml.safe_load)):
            section, _, rest = path.partition(".")
            sections.setdefault(section if rest else "run", {})[rest or section] = value
        return {section: leaves for section, leaves in sections.items() if leaves}

    @property
    def files(self) -> list[str]:
        """Files from which the page was made."""
        names = (RECORD, DESCRIPTION, PROGRESS, "evaluations.npz", SCORES)
        return [name for name in names if (self.folder / name).exists()]

    @property
    def overrides(self) -> list[str]:
        """Overrides with which the run was started."""
        lines = _read(self.folder / "overrides.txt", str.splitlines) or []
        return [line.strip() for line in lines if line.strip()]

    @property
    def film(self) -> Path | None:
        """Newest film."""
        films = [path for path in self.folder.glob("videos/**/*.mp4") if path.stat().st_size]
        return max(films, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def finite(value: object) -> float | None:
    """Return *value* as a finite float, None if it is no such number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer that no float can hold
        return None


def _record(folder: Path) -> RunRecord:
    if (record := read_record(folder)) is not None:
        return record
    path = folder / RECORD
    state = "does not hold a run's record" if path.exists() else "is missing"
    raise ConfigError(f"{path} {state}: a report is written from the folder of a run.")


def _read(path: Path, parse: Callable[[str], T]) -> T | None:
    """Return what *parse* makes of the text in *path*; None where it is missing or damaged."""
    try:
        return parse(path.read_text("utf-8", "replace"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _floats(values: object) -> Floats:
    numbers = [finite(value) for value in values] if isinstance(values, list) else []
    return np.array([value for value in numbers if value is not None], dtype=np.float64)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif path:
        plain = isinstance(value, str)
        yield path, value if plain else json.dumps(value, ensure_ascii=False, default=str)


def _progress(path: Path) -> dict[str, Series]:
    """Return every metric of a table whose first column is the step; half-written rows do no harm."""
    cells: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            rows = csv.reader(file)
            _, *names = next(rows, [""])
            for step, *row in filter(None, rows):
                for name, cell in zip(names, row, strict=False):
                    if cell:
                        cells.setdefault(name, []).append((_parsed(step), _parsed(cell)))
    except (OSError, csv.Error):
        pass
    series = {name: _series(np.array(pairs)) for name, pairs in cells.items()}
    return {name: known for name, known in series.items() if len(known.steps)}


def _parsed(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _series(pairs: Floats) -> Series:
    known = pairs[np.isfinite(pairs).all(axis=1)]
    known = known[np.argsort(known[:, 0], kind="stable")]
    return Series(known[:, 0], known[:, 1], len(pairs) - len(known))


def _evaluations(path: Path) -> Iterator[Evaluation]:
    """Yield the evaluations of Stable-Baselines3's ``evaluations.npz``; of very many some, with the last."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            steps, results = arrays["timesteps"].astype(float), arrays["results"].astype(float)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return
    if steps.ndim != 1 or results.ndim != 2:
        return
    n = min(len(steps), len(results))
    for index in np.unique(np.linspace(0, n - 1, min(n, _MAX_EVALUATIONS)).round().astype(int)):
        returns = results[index][np.isfinite(results[index])]
        if len(returns) and np.isfinite(steps[index]):
            interval = bootstrap_interval(returns, resamples=2_000)
            yield Evaluation(float(steps[index]), returns, interval)
