"""What a run went through and what it cost, in a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rl_research.report.run_folder import RunFolder, finite


def flow_runs(record: Mapping[str, Any], now: str | None) -> list[str]:
    """The flow runs that have worked on the run of *record*, oldest first, with the one of *now*."""
    known = [*(record.get("flow_run_ids") or []), *([] if now is None else [now])]
    return list(dict.fromkeys(known))


def segments(record: Mapping[str, Any], now: str) -> list[dict[str, Any]]:
    """The processes that have had the run of *record*, and the one that takes it up *now*.

    Each but the first says how the one before left it (``killed``, where it could not say so itself), at
    which step, and how many seconds before.
    """
    segment: dict[str, Any] = {"started_at": now}
    if saved := record.get("saved_at"):
        away = datetime.fromisoformat(now) - datetime.fromisoformat(saved)
        left = "killed" if record.get("status") == "running" else record.get("status")
        segment |= {"after": left, "away_seconds": away.total_seconds()}
        segment["from_step"] = record.get("global_step") or 0
    return [*(record.get("segments") or []), segment]


def history(run: RunFolder) -> Iterator[str]:
    """One line for each time that a process took the run up after the first."""
    segments = run.record.get("segments")
    later = segments[1:] if isinstance(segments, list) else []
    for number, segment in enumerate(later, 2):
        if not isinstance(segment, dict):
            continue
        away = finite(segment.get("away_seconds"))
        lost = "" if away is None else f", {away:,.0f} s after its last word"
        step = finite(segment.get("from_step")) or 0.0
        yield f"Segment {number}: {segment.get('after')}, goes on from step {step:,.0f}{lost}."


def cost(run: RunFolder) -> str:
    """Steps per second, processor time and bytes kept; empty where nothing is known."""
    known = []
    if (speed := run.steps_per_second) is not None:
        known.append(f"{speed:,.0f} steps/s")
    if (cpu := finite(run.record.get("cpu_seconds"))) is not None:
        known.append(f"{cpu:,.0f} CPU seconds")
    if kept := run.checkpoints:
        size = sum(manifest["bytes"] for manifest in kept)
        known.append(f"{size / 1e6:,.1f} MB in {len(kept)} checkpoints")
    return f"Cost: {', '.join(known)}." if known else ""
