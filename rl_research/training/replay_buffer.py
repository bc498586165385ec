"""A replay buffer as files: only rows added since the last checkpoint, and no pickle.

Row k of a run (counted from its start, one per step of the vectorised environment) lies at index
``k % capacity``. A segment file holds the rows ``[start, stop)``; checkpoints share segments, and one
needs those that reach into the last `capacity` rows.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.her import HerReplayBuffer

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.buffers import ReplayBuffer

_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_EPISODES = ("ep_start", "ep_length", "_current_ep_start")  # of HER: written when an episode ends, to its rows
_SEGMENT = re.compile(r"rows-(\d{12})-(\d{12})")
_SEGMENT_BYTES = 64 << 20  # bounds what capturing needs in memory


def buffer_of(model: BaseAlgorithm) -> ReplayBuffer | None:
    """Return the replay buffer of *model*, None where it has none."""
    return getattr(model, "replay_buffer", None)


def rows_added(model: BaseAlgorithm) -> int:
    """Return how many rows *model*'s buffer has taken since the run began."""
    buffer = buffer_of(model)
    if buffer is None:
        return 0
    by_steps: int = model.num_timesteps // model.n_envs
    if by_steps % buffer.buffer_size == buffer.pos and (by_steps >= buffer.buffer_size) == buffer.full:
        return by_steps
    # The counter was set back, as by a second `learn`: count from the buffer's own beginning.
    return buffer.pos + (buffer.buffer_size if buffer.full else 0)


def segments_to_reuse(model: BaseAlgorithm, known: Sequence[str]) -> list[str]:
    """Return those of the *known* segments, oldest first, that still hold rows of *model*'s buffer."""
    buffer = buffer_of(model)
    if buffer is None or not known or _span(known[-1])[1] > rows_added(model):
        return []
    oldest = rows_added(model) - buffer.buffer_size
    return [name for name in known if _span(name)[1] > max(oldest, 0)]


def new_segments(model: BaseAlgorithm, reused: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the rows that no reused segment holds, as names and contents of files of bounded size."""
    buffer = buffer_of(model)
    if buffer is None:
        return
    stop = rows_added(model)
    start = max(stop - buffer.buffer_size, _span(reused[-1])[1] if reused else 0)
    arrays = dict(_arrays(buffer))
    row_bytes = sum(array[:1].nbytes for array in arrays.values())
    step = max(1, _SEGMENT_BYTES // max(1, row_bytes))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        rows = np.arange(first, last) % buffer.buffer_size
        out = io.BytesIO()
        np.savez(out, **{key: array[rows] for key, array in arrays.items()})
        yield f"rows-{first:012d}-{last:012d}", out.getvalue()


def head_row(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the row to be written next: with ``optimize_memory_usage`` it holds the latest observation."""
    buffer = buffer_of(model)
    if buffer is None or not buffer.optimize_memory_usage:
        return {}
    return {key: array[buffer.pos].copy() for key, array in _arrays(buffer)}


def episodes(model: BaseAlgorithm) -> bytes | None:
    """Return which rows are an episode in a buffer of `HerReplayBuffer`, as an ``npz``; None in any other."""
    buffer, out = buffer_of(model), io.BytesIO()
    if not isinstance(buffer, HerReplayBuffer):
        return None
    np.savez_compressed(out, **{name: getattr(buffer, name) for name in _EPISODES})
    return out.getvalue()


def restore_replay(
    model: BaseAlgorithm,
    read: Callable[[str], bytes],
    segments: Sequence[str],
    head: Mapping[str, Any],
    episodes: bytes | None = None,
) -> None:
    """Put back the rows of *segments*, oldest first, the *head* row and the *episodes*."""
    buffer = buffer_of(model)
    if buffer is None or not segments:
        return
    added = _span(segments[-1])[1]
    arrays = dict(_arrays(buffer))
    for name in segments:
        start, stop = _span(name)
        first = max(start, added - buffer.buffer_size)
        rows = np.arange(first, stop) % buffer.buffer_size
        with np.load(io.BytesIO(read(name)), allow_pickle=False) as stored:
            for key, array in arrays.items():
                array[rows] = stored[key][first - start :]
    buffer.pos, buffer.full = added % buffer.buffer_size, added >= buffer.buffer_size
    for key, row in head.items():
        arrays[key][buffer.pos] = row
    if episodes is not None:
        vars(buffer).update(np.load(io.BytesIO(episodes), allow_pickle=False))


def truncate_last_row(model: BaseAlgorithm) -> None:
    """Mark the newest transition as the end of a truncated episode, for it has no successor."""
    buffer = buffer_of(model)
    if buffer is None or not (buffer.pos or buffer.full):
        return
    if isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # which says that this truncates
            buffer.truncate_last_trajectory()
        return
    buffer.dones[buffer.pos - 1] = 1.0
    if buffer.handle_timeout_termination:
        buffer.timeouts[buffer.pos - 1] = 1.0


def _span(name: str) -> tuple[int, int]:
    found = _SEGMENT.match(name)
    assert found is not None
    return int(found[1]), int(found[2])


def _arrays(buffer: ReplayBuffer) -> Iterator[tuple[str, Any]]:
    for name in _ARRAYS:
        array = getattr(buffer, name, None)
        if isinstance(array, dict):
            yield from ((f"{name}/{key}", one) for key, one in array.items())
        elif array is not None:
            yield name, array
