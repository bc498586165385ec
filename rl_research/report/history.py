"""What a run went through and what it cost, in a line each."""

from __future__ import annotations

from collections.abc import Iterator

from rl_research.report.run_folder import RunFolder, finite


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
