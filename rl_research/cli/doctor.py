"""``rl-research doctor``: what works here, and what to do about what does not."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rl_research.cli.common import Answer, answering, composing, words_of

if TYPE_CHECKING:
    from rl_research.cli.doctor_checks import Finding


@click.command(epilog="Exit codes: 0 nothing is broken (warnings may be there); 2 something is.")
@words_of("[key=value …]")
@composing
@answering
def doctor(overrides: tuple[str, ...], answer: Answer) -> int:
    """Check W&B, storage, Prefect, disk, versions and unsynced runs, in seconds."""
    from rl_research.cli.doctor_checks import examine, exit_code
    from rl_research.config import load_config

    findings = examine(load_config(overrides))
    code = exit_code(findings)
    found = {"exit_code": code, "findings": [asdict(finding) for finding in findings]}
    answer.result(found, lambda: "".join(map(_lines, findings)))
    return code


def _lines(finding: Finding) -> str:
    remedy = f"{'':<18} {finding.remedy}\n" if finding.remedy else ""
    return f"{finding.state:<8} {finding.about:<9} {finding.said}\n{remedy}"
