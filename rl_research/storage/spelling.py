"""Slips in a URL and its options, found before anything is written to a folder called ``s3:``."""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fsspec import available_protocols

from rl_research.errors import ConfigError
from rl_research.system import masked, without_password

_OF_THIS_MACHINE = {"file", "local"}
_LINK = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)(?P<mark>[:;]?[/\\]*)(?P<path>.*)", re.DOTALL)
_ARN = re.compile(r"arn:[\w-]+:s3:::(.+)")
_SCP = re.compile(r"([\w.-]+@[\w.-]+):/?(?!/)(.*)", re.DOTALL)


def check_url(url: str) -> None:
    """Raise `ConfigError` with the right spelling where *url* has a slip; each link of a chain is looked at."""
    for link in [url] if url.startswith("arn:") else url.split("::"):
        if os.name != "nt" and re.match(r"[A-Za-z]:|\\\\", link):
            raise ConfigError(f"storage.url={url}: this is a path of Windows. Give a URL, or a path of this machine.")
        if (right := _spelt(link)) != link:
            right = without_password(url.replace(link, right))
            raise ConfigError(f"storage.url={without_password(url)}: this is no URL and no path. Give {right}.")


def _spelt(link: str) -> str:
    """Return *link* as it was meant."""
    if (scp := _SCP.fullmatch(link)) and "://" not in link:
        return f"sftp://{scp[1]}/{scp[2]}"
    if link.startswith("arn:"):
        return f"s3://{arn[1]}" if (arn := _ARN.fullmatch(link)) else f"s3://{link}"  # as s3fs names an access point
    found = _LINK.fullmatch(link.strip())
    if found is None or (scheme := found["scheme"].lower()) not in {*available_protocols()} - _OF_THIS_MACHINE:
        return link if "://" not in link else link.strip()
    mark, path = found["mark"], found["path"].replace("\\", "/") if "\\" in found["mark"] else found["path"]
    if not mark or not (":" in mark or len(mark) > 1):  # a folder may be called s3
        return link
    needs_host = scheme not in ("memory", "dir", "zip", "tar", "sftp", "ssh")
    slashes = "://" if needs_host or not mark.startswith("://") else mark
    return f"{scheme}{slashes}{path}"


def check_options(url: str, options: Mapping[str, Any], where: str = "storage.options") -> None:
    """Raise `ConfigError` where an option of *url*'s client cannot be what it should be: an endpoint, a mapping."""
    for name, value in options.items():
        is_link = any(part.startswith(f"{name}:") for part in url.split("::")) and where == "storage.options"
        if (is_link or name.endswith("_kwargs")) and not isinstance(value, Mapping):
            raise ConfigError(
                f"{where}.{name}={masked(str(value))}: should be options, such as {where}.{name}.NAME=VALUE."
            )
        if isinstance(value, Mapping):
            check_options(url, value, f"{where}.{name}")
        elif name.endswith("timeout") and not isinstance(value, int | float | None):
            raise ConfigError(f"{where}.{name}={masked(str(value))}: should be a number of seconds.")
        elif name in ("token", "key_filename") and _is_missing_file(value):
            raise ConfigError(f"{where}.{name}={value}: there is no such file.")
        elif name == "endpoint_url" and value is not None and not _is_endpoint(value):
            shown = without_password(str(value))
            host = shown.rpartition("//")[2]
            right = f"http://{host} or https://{host}" if _is_endpoint(f"http://{host}") else "http://HOST:PORT"
            raise ConfigError(f"{where}.{name}={shown}: this is no endpoint. Give {right}.")


def _is_missing_file(value: object) -> bool:
    is_path = isinstance(value, str) and (value.startswith(("/", "~")) or value.endswith(".json"))
    return is_path and not os.path.isfile(os.path.expanduser(str(value)))  # noqa: PTH111, PTH113  # these never raise


def _is_endpoint(value: object) -> bool:
    try:
        parts = urlsplit(str(value))
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port
        return False
