"""``rl-research doctor``: what works here, and what to do about what does not."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rl_research.cli.common import own_stdout

if TYPE_CHECKING:
    from rl_research.cli.common import Verbs

_EPILOG = "exit codes: 0 nothing is broken (warnings may be there); 2 something is"


def add(verbs: Verbs) -> None:
    """Add the verb to the command's *verbs*."""
    doctor = verbs.add_parser(
        "doctor",
        help="check W&B, storage, Prefect, disk, versions and unsynced runs, in seconds",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as for train")
    doctor.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    doctor.set_defaults(verb=_doctor, parser=doctor)


def _doctor(given: argparse.Namespace) -> int:
    with own_stdout() as answer:
        from dataclasses import asdict

        from rl_research.cli.diagnosis import examine, exit_code
        from rl_research.config import load_config

        findings = examine(load_config(given.overrides))
        code = exit_code(findings)
        if given.json:
            found = [asdict(finding) for finding in findings]
            answer(json.dumps({"exit_code": code, "findings": found}) + "\n")
        else:
            for finding in findings:
                answer(f"{finding.state:<8} {finding.about:<9} {finding.said}\n")
                if finding.remedy:
                    answer(f"{'':<18} {finding.remedy}\n")
    return code
