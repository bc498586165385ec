"""``rl-research checkpoints [list] [RUN]`` and ``rl-research checkpoints get REF [TARGET]``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rl_research.cli.common import REFERENCE, Answer, as_json, in_runs_dir, lookup, own_stdout, split_storage, words_of

if TYPE_CHECKING:
    from rl_research.checkpoints import Checkpoint, Listed, Scores

_LARGE = 10_000_000  # bytes from which a download shows how far it is
_EPILOG = f"""\
RUN: {REFERENCE}; none: the run trained last.

REF: the same, then @latest, @best or @step-N; alone, these mean the run trained last.

TARGET: gets checkpoints/step-…, as a run folder has it; if it is not given, the run's folder in --runs-dir.
"""


@click.command(epilog=_EPILOG, options_metavar="[list] [RUN] [--verify] | get REF [TARGET] [OPTIONS]")
@words_of("")
@in_runs_dir
@as_json
@click.option("--verify", is_flag=True, help="Read and hash every file.")
def checkpoints(overrides: tuple[str, ...], runs_dir: str, as_json: bool, verify: bool) -> None:
    """List a run's checkpoints, or get one."""
    storage, words = split_storage(overrides)
    action = words.pop(0) if words[:1] in (["list"], ["get"]) else "list"
    if action == "get" and len(words) not in (1, 2):
        raise click.UsageError("get takes REF [TARGET].")
    if action == "list" and len(words) > 1:
        raise click.UsageError("list takes one RUN.")
    with own_stdout(as_json) as answer:
        look = lookup(storage, runs_dir)
        if action == "get":
            _get(words, look, answer)
        else:
            _list("".join(words), look, answer, verify=verify)


def _list(run: str, look: dict[str, Any], answer: Answer, *, verify: bool) -> None:
    from rl_research.checkpoints import list_folders, places_of

    found = {store.path(""): list_folders(store, verify=verify) for store in places_of(run, **look)}
    if answer.as_json:
        answer.json(
            places=[
                {"place": place, "checkpoints": [row.model_dump() for row in rows]} for place, rows in found.items()
            ]
        )
    else:
        answer("\n".join(f"{place}\n{_table(rows)}" for place, rows in found.items()))


def _table(rows: Sequence[Listed]) -> str:
    heads = ("step", "score", "final score", "size", "age", "valid", "")
    cells = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    right = (0, 3, 4)
    lines = [
        "  ".join(
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines) + "\n"


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


def _get(words: Sequence[str], look: dict[str, Any], answer: Answer) -> None:
    from rl_research.checkpoints import FOLDER, download, find
    from rl_research.runs import leased_folder, make_folder

    checkpoint = find(words[0], **look)
    target = Path(words[1]).expanduser() if len(words) > 1 else _run_dir(checkpoint, look["runs_dir"])
    if checkpoint.store.is_at(target / FOLDER):
        checkpoint.verify()
    else:
        make_folder(target)
        with leased_folder(target), _progress(checkpoint) as on_bytes:
            checkpoint = download(checkpoint, target, on_bytes)
    found = {
        "checkpoint": checkpoint.address,
        "run_id": checkpoint.manifest.run_id,
        "global_step": checkpoint.global_step,
        "bytes": checkpoint.size,
    }
    answer.result(found, lambda found: f"{found['checkpoint']}\n")


def _run_dir(checkpoint: Checkpoint, runs_dir: str) -> Path:
    """Return the folder that the run of *checkpoint* has in *runs_dir*."""
    stored_as = checkpoint.store.root.rstrip("/").split("/")[-2:][0]
    return Path(runs_dir).expanduser() / str(checkpoint.manifest.run_id or stored_as)


@contextmanager
def _progress(checkpoint: Checkpoint) -> Iterator[Callable[[int], None]]:
    """Show a bar in a terminal for what takes a while; the block calls what is yielded with bytes."""
    if checkpoint.size < _LARGE or not sys.__stderr__ or not sys.__stderr__.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=checkpoint.size, unit="B", unit_scale=True, desc=checkpoint.name) as bar:
        yield bar.update
