"""Private names of fsspec and its clients that `rl_research.storage.fsspec_private` relies on."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import adlfs
import gcsfs
import pytest
import s3fs
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from rl_research.storage import clients, fsspec_private, hiccups

_LIBRARY = Path(__file__).parents[1] / "rl_research"


@pytest.mark.parametrize("client", [s3fs.S3FileSystem, gcsfs.GCSFileSystem, adlfs.AzureBlobFileSystem])
@pytest.mark.parametrize("operation", ["put_file", "get_file", "pipe_file", "cat_file", "info", "find"])
def test_operations_have_coroutines(client: type, operation: str) -> None:
    """Each operation of an asynchronous client is a coroutine under its name with an underscore."""
    found = fsspec_private.coroutine(client, operation)
    assert inspect.iscoroutinefunction(inspect.unwrap(found)), f"{client.__name__}: {operation} is none"


def test_s3_s_own_operations_are_called_by_a_coroutine() -> None:
    """`_call_s3` is s3fs's coroutine function."""
    assert inspect.iscoroutinefunction(s3fs.S3FileSystem._call_s3)


def test_clients_are_known_by_their_protocols() -> None:
    """Each client's class says which kind of store it is for."""
    kinds = [clients.kind_of(kind) for kind in (s3fs.S3FileSystem, gcsfs.GCSFileSystem, adlfs.AzureBlobFileSystem)]
    assert kinds == ["s3", "gcs", "azure"]
    assert clients.kind_of(MemoryFileSystem) is None


def test_a_folder_s_paths_are_joined() -> None:
    """``dir::`` puts its folder before a path."""
    assert fsspec_private.full_path(DirFileSystem("/below", MemoryFileSystem()), "a/b") == "/below/a/b"


def test_gcsfs_hides_what_it_repeats_behind_wrapped() -> None:
    """Each method that gcsfs's core repeats keeps the one that is not repeated as ``__wrapped__``."""
    for name in fsspec_private._RETRIED_BY_GCSFS:
        assert hasattr(getattr(gcsfs.core.GCSFileSystem, name), "__wrapped__"), f"{name} is repeated otherwise"
    fs = gcsfs.GCSFileSystem.__new__(gcsfs.GCSFileSystem)
    fsspec_private.repeat_gcsfs_requests(fs, hiccups.again_async)
    assert not hasattr(fs._request.__func__, "__wrapped__")


def test_azure_s_settings_are_where_they_were() -> None:
    """Retries and block sizes of Azure's client are attributes of its ``_config``."""
    from azure.storage.blob.aio import BlobServiceClient

    client = BlobServiceClient("http://127.0.0.1:9/account")
    fs = SimpleNamespace(service_client=client)
    policy = client._config.retry_policy
    names = {"total_retries", "connect_retries", "read_retries", "status_retries", "get_backoff_time"}
    assert names <= set(dir(policy))
    settings = fsspec_private.repeat_azure_requests(fs, 3, lambda attempt, error: 0.0)
    assert settings.retry_policy.total_retries == 2
    assert settings.max_single_put_size > 0
    assert settings.max_block_size > 0


def test_nothing_else_names_them() -> None:
    """The private names stand in one file."""
    pattern = re.compile(r"_call_s3|_put_file|_get_file\b|__wrapped__|\b_config\.retry|fs\._join")
    found = [
        path.name
        for path in _LIBRARY.rglob("*.py")
        if path.name != "fsspec_private.py" and pattern.search(path.read_text())
    ]
    assert found == []
