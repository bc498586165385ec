"""Checks of this machine's surroundings, each bounded in time, with a remedy for what does not work."""

import importlib.util
import json
import os
import secrets
import shutil
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from rl_research.config import Config, StorageSettings, load_config, register
from rl_research.errors import ConfigError, StorageError
from rl_research.storage import Store, is_transient
from rl_research.sync import Policy, find, reason_to_skip
from rl_research.system import expanded, without_password
from rl_research.tracking import NoAnswer, Refused, WandbApi

DEPLOYMENTS = Path("deployment.yaml")
_TIMEOUT = 5.0  # seconds for one answer
_LOW, _OUT = 10e9, 1e9  # bytes of disk: warned of, too few
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ``ok``, ``warning`` or ``broken``."""

    about: str
    state: str
    said: str
    remedy: str = ""


def examine(config: Config) -> list[Finding]:
    """Check everything that *config* needs, side by side; each check is bounded in time."""
    with ThreadPoolExecutor(len(_CHECKS)) as pool:
        found = pool.map(lambda check: list(check(config)), _CHECKS)
        return [finding for findings in found for finding in findings]


def exit_code(findings: list[Finding]) -> int:
    """Return 2 if anything is broken, else 0; a warning is for people."""
    return 2 if any(finding.state == "broken" for finding in findings) else 0


def _versions(config: Config) -> Iterator[Finding]:  # noqa: ARG001  # one form for all checks
    clashes = list(_clashes())
    for clash, requirement in clashes:
        yield Finding("versions", "broken", clash, f"pip install '{requirement}'")
    if not clashes:
        names = ("prefect", "wandb", "stable-baselines3", "torch")
        yield Finding("versions", "ok", ", ".join(f"{name} {metadata.version(name)}" for name in names))


def _clashes() -> Iterator[tuple[str, Requirement]]:
    """Yield what is installed and is not what this package declares to need."""
    declared: list[str] = []
    with suppress(metadata.PackageNotFoundError):  # a checkout that is only on the path declares nothing
        declared = metadata.requires("rl-research") or []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed", requirement
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                yield f"{requirement.name} {version}: rl-research needs {requirement.specifier}", requirement


def _wandb(config: Config) -> Iterator[Finding]:
    api = WandbApi(timeout=_TIMEOUT)
    wanted = "broken" if config.wandb.mode == "online" else "warning"
    entity, project = config.wandb.entity or "", config.wandb.project
    try:
        api.viewer()
        api.ask_for_run(entity, project, f"doctor-{secrets.token_hex(4)}")
    except Refused as error:
        remedy = "Check the API key, wandb.entity and wandb.project, or ask for the right to write there."
        yield Finding("W&B", wanted, f"{entity or 'your entity'}/{project}: {error}", remedy)
    except NoAnswer as error:
        remedy = "Runs go on offline meanwhile; `rl-research sync` delivers them."
        yield Finding("W&B", wanted, str(error), remedy)
    else:
        yield Finding("W&B", "ok", f"{api.base_url} knows the key and answers for {project}")


def _proxies(config: Config) -> Iterator[Finding]:  # noqa: ARG001  # one form for all checks
    found = {name: os.environ[name] for name in os.environ if name.upper() in _PROXIES}
    bare = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = [urlsplit(os.environ.get(name, "")).hostname for name in ("PREFECT_API_URL", "WANDB_BASE_URL")]
    local = [host for host in hosts if host in ("127.0.0.1", "localhost") and host not in bare]
    where = ", ".join(f"{name}={urlsplit(url).hostname}" for name, url in sorted(found.items()))
    if found and local:
        said = f"{where}: requests to {local[0]} go through it, too"
        yield Finding("proxy", "warning", said, f"export NO_PROXY={local[0]}")
    else:
        yield Finding("proxy", "ok", where or "none")


def _storage(config: Config) -> Iterator[Finding]:
    sections = {"": config.storage}  # by whose it is
    try:
        sections |= {f" ({name})": section for name, section in _deployed_storage()}
    except (ConfigError, AttributeError, TypeError) as error:
        yield Finding("storage", "warning", f"{DEPLOYMENTS}: {error}", "`make deploy` says what is wrong there.")
    seen = set()
    for whose, section in sections.items():
        if section.url is None:
            yield Finding("storage", "ok", "the run folder")
        elif (where := repr((section.url, section.options))) not in seen:
            seen.add(where)
            yield _probed(section, whose)


def _deployed_storage() -> Iterator[tuple[str, StorageSettings]]:
    """Yield every store that deployment.yaml, where the command is given, names, with its deployment."""
    from rl_research.orchestration import parsed

    for entry in parsed(DEPLOYMENTS)["deployments"] if DEPLOYMENTS.exists() else ():
        for start in [{}, *(entry.get("schedules") or ()), *(entry.get("triggers") or ())]:
            given = {**(entry.get("parameters") or {}), **(start.get("parameters") or {})}
            for number, more in enumerate(given.get("grid") or [[]]):
                section = load_config([*(given.get("overrides") or ()), *more]).storage
                places = [place for key in ("where", "places") for place in given.get(key) or () if "://" in place]
                for url in filter(None, [section.url, *places]):
                    name = f"{entry['name']} in {DEPLOYMENTS}" + (f", {number + 1}" if number else "")
                    yield name, section.model_copy(update={"url": url})


def _probed(section: StorageSettings, whose: str) -> Finding:
    """Write, read and remove an object, and return what came of it."""
    url = str(section.url)
    name, content = f".probe-{secrets.token_hex(6)}", secrets.token_bytes(64)
    try:
        store = Store(url, section.options, section.timeout)
        store.write(name, content)
        same = store.read(name) == content
        store.remove(name)
    except (StorageError, ConfigError) as error:
        return Finding("storage", "broken", f"{error}{whose}", "See docs for storage.url and its options.")
    except Exception as error:
        if not (is_transient(error) or isinstance(error, OSError)):
            raise
        said = f"{without_password(url)}{whose}: {str(error) or type(error).__name__}"
        return Finding("storage", "broken", said, "Training goes on without; uploads are tried again.")
    said = "written, read and removed" if same else "what is read is not what was written"
    return Finding("storage", "ok" if same else "broken", f"{without_password(url)}{whose}: {said}")


def _prefect(config: Config) -> Iterator[Finding]:  # noqa: ARG001  # one form for all checks
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        yield Finding("Prefect", "ok", "its embedded API (PREFECT_API_URL is not set)")
        return
    pools = urllib.request.Request(f"{url.rstrip('/')}/work_pools/filter", b"{}", {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(pools, timeout=_TIMEOUT) as answer:
            ready = [pool["name"] for pool in json.load(answer) if pool["status"] == "READY"]
    except (OSError, ValueError) as error:
        remedy = "Start it (`prefect server start`), or unset PREFECT_API_URL."
        yield Finding("Prefect", "broken", f"{url}: {error}", remedy)
        return
    if ready:
        yield Finding("Prefect", "ok", f"{url}, with a worker for {', '.join(ready)}")
    else:
        said = f"{url} answers, but no worker is there: nothing that is scheduled runs"
        yield Finding("Prefect", "warning", said, "Start one (`rl-research serve`).")


def _disk(config: Config) -> Iterator[Finding]:
    folder = expanded(config.runs_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    state = "broken" if free < _OUT else "warning" if free < _LOW else "ok"
    remedy = "" if state == "ok" else "Free space, or choose another place with runs_dir=PATH."
    yield Finding("disk", state, f"{free / 1e9:.0f} GB free for {config.runs_dir}", remedy)


def _runs(config: Config) -> Iterator[Finding]:
    folder = expanded(config.runs_dir)
    runs = find([folder]) if folder.is_dir() else []
    api = WandbApi()
    counts: Counter[str] = Counter()
    for run in runs:
        outcome = reason_to_skip(run, api, Policy())
        counts["unsynced" if outcome is None else outcome.state] += 1
    said = ", ".join(f"{number:,} {state}" for state, number in sorted(counts.items())) or "none"
    if counts["blocked"] or counts["unverified"]:
        yield Finding("runs", "warning", said, f"rl-research sync {folder} says why.")
    elif counts["unsynced"]:
        yield Finding("runs", "warning", said, f"rl-research sync {folder}")
    else:
        yield Finding("runs", "ok", said)


def _plugins(config: Config) -> Iterator[Finding]:  # noqa: ARG001  # its plugins have been imported
    named = [f"{kind} {', '.join(names)}" for kind, names in register.registered().items()]
    yield Finding("plugins", "ok", "; ".join(named) or "none")


def _films(config: Config) -> Iterator[Finding]:  # noqa: ARG001  # one form for all checks
    wanted = {"moviepy": "films", "imageio_ffmpeg": "films", "pygame": "pictures of classic control"}
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        said = f"{missing[0]} is not installed: no {wanted[missing[0]]}"
        yield Finding("films", "warning", said, "Install rl-research again, or video.enabled=false.")
    else:
        yield Finding("films", "ok", "moviepy, ffmpeg and pygame are there")


_CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _versions, _wandb, _proxies, _storage, _prefect, _disk, _runs, _plugins, _films,
)  # fmt: skip
