"""Slips in a URL and in the options of its client are a line with the right spelling, and write nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import environment, tiny

from rl_research.errors import ConfigError, StorageError
from rl_research.storage import Store


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("s3:/bucket/x", "Give s3://bucket/x"),
        ("s3:bucket/x", "Give s3://bucket/x"),
        ("s3//bucket/x", "Give s3://bucket/x"),
        ("s3;//bucket", "Give s3://bucket"),
        ("s3:///bucket/x", "Give s3://bucket/x"),
        ("S3://bucket", "Give s3://bucket"),
        (" s3://bucket", "Give s3://bucket"),
        ("s3:\\\\bucket\\x", "Give s3://bucket/x"),
        ("gs:/bucket", "Give gs://bucket"),
        ("arn:aws:s3:::bucket/x", "Give s3://bucket/x"),
        ("arn:aws:s3:eu-west-1:1:accesspoint/a", "Give s3://arn:aws:s3:eu-west-1:1:accesspoint/a"),
        ("az:container", "Give az://container"),
        ("me@host:/data/runs", "Give sftp://me@host/data/runs"),
        ("simplecache::s3:/bucket", "Give simplecache::s3://bucket"),
        ("C:\\runs", "a path of Windows"),
        ("c:/runs", "a path of Windows"),
        ("\\\\server\\share", "a path of Windows"),
    ],
)
def test_a_slip_is_told_with_the_right_spelling(
    url: str, right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder gets such a name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^storage\.url=") as raised:
        Store(url)
    assert right in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["s3", "s3/runs", "gs-runs", "./s3:x", "memory", "a b", "file:///tmp/x", "läufe"])
def test_a_path_is_a_path(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be called like a scheme."""
    monkeypatch.chdir(tmp_path)
    assert Store(url).is_local


_HERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("s3://b", {"endpoint_url": "127.0.0.1:5111"}, "Give http://127.0.0.1:5111 or https://127.0.0.1:5111"),
        ("s3://b", {"endpoint_url": "minio"}, "Give http://minio or https://minio"),
        ("s3://b", {"endpoint_url": "http://127.0.0.1:port"}, "Give http://HOST:PORT"),
        ("s3://b", {"endpoint_url": "http://127.0.0.1:99999"}, "Give http://HOST:PORT"),
        ("s3://b", {"endpoint_url": 5111}, "storage.options.endpoint_url=5111"),
        ("s3://b", {"endpoint_url": ""}, "Give http://HOST:PORT"),
        ("s3://b", {"client_kwargs": {"endpoint_url": "x:1"}}, "storage.options.client_kwargs.endpoint_url=x:1"),
        (
            "s3://b",
            {"config_kwargs": {"connect_timeout": "x"}},
            "config_kwargs.connect_timeout=x: should be a number of",
        ),
        ("gs://b", {"token": "/nowhere.json"}, "storage.options.token=/nowhere.json: there is no such file"),
        ("sftp://h/x", {"timeout": "soon"}, "storage.options.timeout=soon: should be a number of seconds"),
        ("sftp://h/x", {"key_filename": "~/no_such_key"}, "key_filename=~/no_such_key: there is no such file"),
        ("s3://b", {"client_kwargs": "x"}, "storage.options.client_kwargs=x"),
        ("s3://b", {"client_kwargs": {"region_name": "no region!"}}, "no such region"),
        ("s3://b", {"client_kwargs": {"region_name": 5}}, "Check storage.options"),
        ("s3://b", {"config_kwargs": {"retries": "x"}}, "Check storage.options"),
        ("s3://b", {"config_kwargs": {"signature_version": "x"}, "endpoint_url": _HERE}, "Unknown Signature Version"),
        ("s3://b", {"key": 5, "secret": 6, "endpoint_url": _HERE}, "Check storage.options"),
        ("s3://b", {"max_concurrency": "x"}, "Check storage.options"),
        ("simplecache::s3://b", {"s3": {"endpoint_url": "x:1"}}, "storage.options.s3.endpoint_url=x:1"),
        ("simplecache::s3://b", {"s3": "x"}, "storage.options.s3=x"),
        ("gs://b", {"endpoint_url": "x:1", "token": "anon"}, "Give http://x:1"),
        ("gs://b", {"token": "anon", "access": "x"}, "access must be one of"),
        ("az://c", {"connection_string": "x"}, "Connection string"),
        ("az://c", {"account_name": "x", "sas_token": 5}, "storage.options.account_name=NAME"),
        ("sftp://127.0.0.1:port/x", {}, "Port could not be cast"),
        ("sftp://127.0.0.1:99999/x", {}, "Port out of range"),
    ],
)
def test_an_option_that_no_client_takes_is_a_line(
    url: str, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Malformed endpoints, ports and regions, and values of a wrong type, are the user's to correct."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises((ConfigError, StorageError)) as raised:
        Store(url, options).write("probe", b"x")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["storage.url=s3://plain/x", "storage.options.endpoint_url=127.0.0.1:5111"], ["storage.url=s3:/bucket/x"]]
)
def test_the_command_ends_with_one_line(words: list[str], tmp_path: Path) -> None:
    """Exit code 2, before anything is trained or written."""
    done = subprocess.run(
        [sys.executable, "-m", "rl_research", "train", *tiny(tmp_path / "runs", "x", "wandb=disabled"), *words],
        env=environment(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b"), cwd=tmp_path,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "s3:").exists()
