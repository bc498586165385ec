"""Scores of a study's settings over their seeds."""

import json
from collections.abc import Sequence
from typing import Any

from rl_research.errors import in_a_line
from rl_research.statistics import bootstrap_interval, iqm
from rl_research.studies.plan import Member, Study
from rl_research.system import write_atomically


def study_result(study: Study) -> dict[str, Any]:
    """Return the scores of each setting over its seeds, and write them to ``study.json``."""
    settings = list(dict.fromkeys(member.setting for member in study.members))
    failed = [member for member in study.members if not member.record.is_finished]
    found = {
        "name": study.name,
        "folder": str(study.folder),
        "settings": [_setting(name, [m for m in study.members if m.setting == name]) for name in settings],
        "failed": [m.run_id for m in failed],
        **({"last_lines": {m.run_id: _last_line(study, m) for m in failed}} if failed else {}),
    }
    text = json.dumps(found, indent=2) + "\n"
    write_atomically(study.folder / "study.json", text.encode())
    return found


def _last_line(study: Study, member: Member) -> str:
    """Return the last line of the log of *member*, empty where there is none."""
    try:
        lines = (study.folder / "logs" / f"{member.run_id}.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((in_a_line(line) for line in reversed(lines) if line.strip()), "")


def _setting(name: str, members: Sequence[Member]) -> dict[str, Any]:
    records = [(member, member.record) for member in members]
    done = [(member, record.scores) for member, record in records if record.is_finished and record.scores]
    means = [scores.mean for _, scores in done]
    interval = bootstrap_interval(means, "iqm") if means else None
    return {
        "setting": name,
        "scores": {str(member.seed): scores.mean for member, scores in done},
        "runs": {str(member.seed): str(member.config.run_dir) for member in members},
        "iqm": iqm(means) if means else None,
        "interval": None if interval is None else list(interval),
    }
