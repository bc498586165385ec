"""``rl-research init``: a project of one's own, which trains at once."""

import importlib.util
import keyword
import re
import sys
from pathlib import Path

import click

from rl_research.errors import ConfigError
from rl_research.system import expanded, raise_if_refused

_TEMPLATE = Path(__file__).with_name("project")
_NAME = "my_lab"  # in the template


@click.command()
@click.argument("name")
def init(name: str) -> None:
    """Write a project of your own into the new folder NAME.

    It has an environment, a wrapper, a policy, an experiment, two schedules and tests, and trains at once.
    """
    folder = expanded(name)
    _check_name(folder.name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"init {name}: the folder is there and not empty. Choose another name, or empty it.")
    try:
        for source in sorted(path for path in _TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            target = folder / str(source.relative_to(_TEMPLATE)).replace(_NAME, folder.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text("utf-8").replace(_NAME, folder.name), "utf-8")
    except OSError as error:
        raise_if_refused(error, folder)
        raise
    sys.stdout.write(
        f"{name} is written. Train its first experiment:\n\n"
        f"    cd {name}\n    rl-research train --config-dir configs experiment=my_first\n"
    )


def _check_name(name: str) -> None:
    """Raise `ConfigError` unless *name* can be a package of Python's that hides no other."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*[A-Za-z0-9]", name) or keyword.iskeyword(name):
        mended = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
        mended = (
            mended if re.match(r"[a-z]\w", mended) and not keyword.iskeyword(mended) else f"lab_{mended}".strip("_")
        )
        raise ConfigError(
            f"init {name}: a project is a package of Python's, so its name is an identifier. Try {mended}."
        )
    found = importlib.util.find_spec(name)
    if name in {path.name for path in _TEMPLATE.iterdir()} - {_NAME} or (found is not None and found.origin):
        raise ConfigError(f"init {name}: the name is taken by another package. Try {name}_lab.")
