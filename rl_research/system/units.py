"""Sizes and times as people write and read them."""

import re

from rl_research.errors import ConfigError

_SIZES = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}  # fmt: skip
_TIMES = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parsed_size(name: str, text: str) -> int:
    """Return the bytes that *text* says, such as ``50GB`` or ``1.5 GiB``; `ConfigError` names *name*."""
    return int(_parsed(name, text, _SIZES, "a size such as 50GB, 500MB or 1.5GiB"))


def parsed_time(name: str, text: str) -> float:
    """Return the seconds that *text* says, such as ``24h``, ``7d`` or ``0s``; `ConfigError` names *name*."""
    return _parsed(name, text, _TIMES, "a time such as 24h, 7d or 90min")


def _parsed(name: str, text: str, units: dict[str, int], wanted: str) -> float:
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2].lower() not in units:
        raise ConfigError(f"{name}={text}: should be {wanted}.")
    return float(found[1].replace("_", "")) * units[found[2].lower()]


def shown_size(size: float) -> str:
    """*size* in bytes, in the unit that fits: ``812 B``, ``1.4 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def shown_time(seconds: float) -> str:
    """*seconds* in the unit that fits: ``41 s``, ``12 min``, ``5 h``, ``9 d``."""
    for unit, length, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < limit:
            return f"{max(seconds, 0) / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
