"""``rl-research export``: a policy for other programs."""

import click

from rl_research.cli.common import CHECKPOINT, Answer, answering, find_checkpoint, in_runs_dir, trust_env, words_of

_FORMATS = {
    "zip": "SB3's own files",
    "onnx": "for ONNX Runtime; needs the extra onnx",
    "torchscript": "for libtorch",
    "hub": "a folder for the Hugging Face Hub; nothing is uploaded",
}
_EPILOG = f"""\
{CHECKPOINT}

--to: {"; ".join(f"{name}, {meaning}" for name, meaning in _FORMATS.items())}.
"""


@click.command(epilog=_EPILOG)
@click.argument("checkpoint")
@words_of("[storage.KEY=VALUE …]")
@in_runs_dir
@answering
@trust_env
@click.option("--to", type=click.Choice(list(_FORMATS)), default="zip", show_default=True, help="What is written.")
@click.option("--output", metavar="FOLDER", help="Where; exports/RUN_ID-STEP-FORMAT if it is not given.")
def export(
    checkpoint: str,
    overrides: tuple[str, ...],
    runs_dir: str,
    answer: Answer,
    trust_env: bool,
    to: str,
    output: str | None,
) -> None:
    """Write a checkpoint's policy for other programs."""
    from rl_research.config import hide_secrets_of
    from rl_research.system import expanded
    from rl_research.training import export_policy

    reference, words = hide_secrets_of(checkpoint, overrides)
    found = find_checkpoint(reference, words, runs_dir)
    folder = expanded(output or f"exports/{found.manifest.run_id or found.manifest.name}-{found.global_step}-{to}")
    written = export_policy(found, to, folder, trust_plugins=trust_env)
    answer.result(written, lambda: _lines(written))


def _lines(written: dict[str, object]) -> str:
    shown = {name: value for name, value in written.items() if name not in ("to", "files")}
    files = "".join(f"{written['folder']}/{name}\n" for name in written["files"])  # type: ignore[attr-defined]  # a list
    return files + "".join(f"{name:<18} {value}\n" for name, value in shown.items() if name != "folder")
