"""``rl-research checkpoints [list] [RUN]`` and ``rl-research checkpoints get REF [TARGET]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rl_research.cli.common import REFERENCE, Answer, answering, find_checkpoint, in_runs_dir, split_storage, words_of

if TYPE_CHECKING:
    from rl_research.checkpoints import Checkpoint, Listed, Scores

_LARGE = 10_000_000  # bytes from which a download shows how far it is
_COLUMNS = "{:>11}  {:<18}  {:<18}  {:>8}  {:>7}  {:<5}  {}"
_EPILOG = f"""\
RUN: {REFERENCE}; none: the run trained last.

REF: the same, then @latest, @best or @step-N; alone, these mean the run trained last.

TARGET: gets checkpoints/step-…, as a run folder has it; if it is not given, the run's folder in --runs-dir.
"""


@click.command(epilog=_EPILOG, options_metavar="[list] [RUN] [--verify] | get REF [TARGET] [OPTIONS]")
@words_of("")
@in_runs_dir
@answering
@click.option("--verify", is_flag=True, help="Read and hash every file.")
def checkpoints(overrides: tuple[str, ...], runs_dir: str, answer: Answer, verify: bool) -> None:
    """List a run's checkpoints, or get one."""
    storage, words = split_storage(overrides)
    action = words.pop(0) if words[:1] in (["list"], ["get"]) else "list"
    if action == "get" and len(words) not in (1, 2):
        raise click.UsageError("get takes REF [TARGET].")
    if action == "list" and len(words) > 1:
        raise click.UsageError("list takes one RUN.")
    if action == "get":
        _get(words, storage, runs_dir, answer)
    else:
        _list("".join(words), storage, runs_dir, answer, verify=verify)


def _list(run: str, overrides: Sequence[str], runs_dir: str, answer: Answer, *, verify: bool) -> None:
    from rl_research.checkpoints import list_folders, places_of
    from rl_research.config import load_storage

    storage = load_storage(overrides)
    stores = places_of(run, storage.options, runs_dir=runs_dir, url=storage.url)
    found = {store.path(""): list_folders(store, verify=verify) for store in stores}
    places = [{"place": place, "checkpoints": [row.model_dump() for row in rows]} for place, rows in found.items()]
    text = "\n".join(f"{place}\n{_table(rows)}" for place, rows in found.items())
    answer.result({"places": places}, lambda: text)


def _table(rows: Sequence[Listed]) -> str:
    lines = [("step", "score", "final score", "size", "age", "valid", ""), *map(_cells, rows)]
    return "".join(_COLUMNS.format(*cells).rstrip() + "\n" for cells in lines)


def _cells(row: Listed) -> tuple[str, ...]:
    from rl_research.system import shown_size, shown_time

    marks = [mark for mark in ("latest", "best") if getattr(row, mark)]
    return (
        f"{row.global_step:,}",
        _score(row.scores),
        _score(row.final_scores),
        "" if row.bytes is None else shown_size(row.bytes),
        "" if row.age is None else shown_time(row.age),
        "yes" if row.valid else "NO",
        row.problem or ", ".join(marks),
    )


def _score(scores: Scores | None) -> str:
    return "" if scores is None else f"{scores.mean:.2f} ± {scores.std:.2f}"


def _get(words: Sequence[str], overrides: Sequence[str], runs_dir: str, answer: Answer) -> None:
    from tqdm import tqdm

    from rl_research.checkpoints import FOLDER, download
    from rl_research.runs import leased_folder, make_folder
    from rl_research.system import expanded

    checkpoint = find_checkpoint(words[0], overrides, runs_dir)
    target = expanded(words[1]) if len(words) > 1 else _run_dir(checkpoint, runs_dir)
    if checkpoint.store.is_at(target / FOLDER):
        checkpoint.verify()
    else:
        make_folder(target)
        silent = checkpoint.size < _LARGE or None  # None: where there is no terminal
        bar = tqdm(total=checkpoint.size, unit="B", unit_scale=True, desc=checkpoint.name, disable=silent)
        with leased_folder(target), bar:
            checkpoint = download(checkpoint, target, bar.update)
    found = {
        "checkpoint": checkpoint.address,
        "run_id": checkpoint.manifest.run_id,
        "global_step": checkpoint.global_step,
        "bytes": checkpoint.size,
    }
    answer.result(found, lambda: f"{found['checkpoint']}\n")


def _run_dir(checkpoint: Checkpoint, runs_dir: str) -> Path:
    """Return the folder that the run of *checkpoint* has in *runs_dir*."""
    from rl_research.system import expanded

    stored_as = checkpoint.store.root.rstrip("/").split("/")[-2:][0]
    return expanded(runs_dir) / str(checkpoint.manifest.run_id or stored_as)
