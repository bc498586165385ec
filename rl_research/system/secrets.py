"""Secrets: what looks like one, and how a text is shown without it."""

import re

MASK = "***"

_WORDS = {
    "key", "keys", "apikey", "token", "secret", "password", "passwd", "passphrase", "credential",
    "credentials", "auth", "authorization", "signature", "sas", "cookie",
}  # fmt: skip
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USERINFO = re.compile(r"(?<=://)[^/\s]+@")
_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):([^/\s]*)@")  # to the last @, as every client reads it
_SIGNED = re.compile(r"(?i)([?&;](?:[\w-]*(?:token|signature|secret|password|key)|sig)=)[^&;\s]+")

#: Names that hold one of the words above and no secret.
_NAMES_OF_PLACES = {"file", "filename", "path", "policy", "name", "uri", "url", "id", "for"}
#: What gcsfs takes as ``token`` besides a token: ways to find one.
_WAYS = {"anon", "google_default", "cache", "cloud", "browser"}


def names_a_secret(key: str) -> bool:
    """Return whether *key*, such as ``api_key`` or ``awsSecretAccessKey``, holds a word for a secret."""
    words = _words_of(key)
    return bool(words & _WORDS) or {"connection", "string"} <= words


def is_secret_option(key: str, value: object) -> bool:
    """Return whether *value* as the file system's option *key* is a secret spelt out."""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value == "":
        return False
    if _words_of(key) & _NAMES_OF_PLACES or not names_a_secret(key):
        return False
    return not (isinstance(value, str) and (_stands_for_one(value) or is_reference(value)))


def is_reference(value: str) -> bool:
    """Return whether *value* is nothing but ``${oc.env:NAME}`` or another interpolation without a default."""
    return re.fullmatch(r"\$\{[^{},]+\}", value.strip()) is not None


def masked(text: str) -> str:
    """*text* without the user part of the URLs in it, and without their signatures."""
    return _SIGNED.sub(rf"\g<1>{MASK}", _USERINFO.sub(f"{MASK}@", text))


def without_password(url: str) -> str:
    """*url* as it may be shown and opened again: without its password and signatures."""
    return _SIGNED.sub(rf"\g<1>{MASK}", _PASSWORD.sub(r"\1@", url))


def password_in(url: str) -> str | None:
    """Return the password that *url* holds, None if it holds none or refers to it."""
    found = _PASSWORD.search(url)
    return found[2] if found and found[2] and not is_reference(found[2]) else None


def _words_of(key: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(key)}


def _stands_for_one(value: str) -> bool:
    """Return whether *value* names a way to a secret, or the file that holds it."""
    return value in _WAYS or value.startswith(("/", "~")) or value.endswith(".json")
