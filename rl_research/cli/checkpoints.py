"""``rl-research checkpoints [list] [RUN]`` and ``rl-research checkpoints get REF [TARGET]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_research.cli.common import REFERENCE, is_about_storage, lookup, own_stdout, takes_places

if TYPE_CHECKING:
    from collections.abc import Callable

    from rl_research.checkpoints import Checkpoint
    from rl_research.cli.common import Verbs

_LARGE = 10_000_000  # bytes from which a download shows how far it is
_USAGE = """\
rl-research checkpoints [list] [RUN] [--verify] [options]
       rl-research checkpoints get REF [TARGET] [options]"""
_ABOUT = f"""\
RUN: {REFERENCE}; none: the run trained last.
REF: the same, then @latest, @best or @step-N; alone, these mean the run trained last.
TARGET: gets checkpoints/step-…, as a run folder has it (default: the run's folder in --runs-dir)."""


def add(verbs: Verbs) -> None:
    """Add the verb to the command's *verbs*."""
    verb = verbs.add_parser(
        "checkpoints",
        help="list a run's checkpoints, or get one",
        usage=_USAGE,
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    takes_places(verb)
    verb.add_argument("--verify", action="store_true", help="read and hash every file")
    verb.set_defaults(verb=_checkpoints, parser=verb)


def _checkpoints(given: argparse.Namespace) -> int:
    words = [word for word in given.overrides if not is_about_storage(word)]
    given.overrides = [word for word in given.overrides if is_about_storage(word)]
    action = words.pop(0) if words and words[0] in ("list", "get") else "list"
    most = {"list": 1, "get": 2}[action]
    if len(words) > most or (action == "get" and not words):
        given.parser.error(f"{action} takes {'REF [TARGET]' if action == 'get' else 'one RUN'}")
    with own_stdout() as answer:
        return (_get if action == "get" else _list)(given, words, answer)


def _list(given: argparse.Namespace, words: Sequence[str], answer: Callable[[str], None]) -> int:
    from rl_research.checkpoints import listed, places_of

    stores = places_of(words[0] if words else "", **lookup(given))
    found = {store.path(""): listed(store, verify=given.verify) for store in stores}
    if given.json:
        places = [{"place": place, "checkpoints": rows} for place, rows in found.items()]
        answer(json.dumps({"places": places}) + "\n")
    else:
        answer("\n".join(f"{place}\n{_table(rows)}" for place, rows in found.items()))
    return 0


def _table(rows: Sequence[dict[str, Any]]) -> str:
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


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    from rl_research.system import shown_size, shown_time

    marks = [mark for mark in ("latest", "best") if row[mark]]
    return (
        f"{row['global_step']:,}",
        _score(row["scores"]),
        _score(row["final_scores"]),
        "" if row["bytes"] is None else shown_size(row["bytes"]),
        "" if row["age"] is None else shown_time(row["age"]),
        "yes" if row["valid"] else "NO",
        row["problem"] or ", ".join(marks),
    )


def _score(scores: dict[str, Any] | None) -> str:
    return "" if not scores else f"{scores['mean']:.2f} ± {scores.get('std', 0.0):.2f}"


def _get(given: argparse.Namespace, words: Sequence[str], answer: Callable[[str], None]) -> int:
    from rl_research.checkpoints import FOLDER, download, find
    from rl_research.runs import leased_folder, make_folder

    checkpoint = find(words[0], **lookup(given))
    target = Path(words[1]).expanduser() if len(words) > 1 else _home(checkpoint, given.runs_dir)
    if checkpoint.store.is_at(target / FOLDER):
        checkpoint.verify()
    else:
        make_folder(target)
        with leased_folder(target), _progress(checkpoint) as on_bytes:
            checkpoint = download(checkpoint, target, on_bytes)
    found = {
        "checkpoint": checkpoint.address,
        "run_id": checkpoint.manifest.get("run_id"),
        "global_step": checkpoint.global_step,
        "bytes": _size(checkpoint),
    }
    answer(json.dumps(found) + "\n" if given.json else f"{checkpoint.address}\n")
    return 0


def _home(checkpoint: Checkpoint, runs_dir: str) -> Path:
    """The folder of the run that *checkpoint* is of."""
    stored_as = checkpoint.store.root.rstrip("/").split("/")[-2:][0]
    return Path(runs_dir).expanduser() / str(checkpoint.manifest.get("run_id") or stored_as)


def _size(checkpoint: Checkpoint) -> int:
    return sum(size for size, _ in checkpoint.paths().values())


@contextmanager
def _progress(checkpoint: Checkpoint) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal for what takes a while."""
    if _size(checkpoint) < _LARGE or not sys.__stderr__ or not sys.__stderr__.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=_size(checkpoint), unit="B", unit_scale=True, desc=checkpoint.name) as bar:
        yield bar.update
