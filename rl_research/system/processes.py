"""Processes of this machine: which live, and children that end with their parent, however it ends.

As a program, ``processes.py FD COMMAND…`` runs a command whose process group is killed as soon as the other
end of the pipe FD is closed. It imports nothing but the standard library.
"""

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_log = logging.getLogger(__name__)
_POLL = 1.0  # seconds between two looks at the parent, where its end closes nothing


def when_parent_ends(descriptor: int, action: Callable[[], object], parent: int | None = None) -> None:
    """Call *action* in a thread when the parent process has ended.

    The other end of *descriptor*, a pipe or a socket, is the parent's and closes with it. A process that
    has inherited that end may keep it open, so the number of the parent is watched as well.
    """
    watched, expected = select.poll(), os.getppid() if parent is None else parent
    watched.register(descriptor, 0)

    def watch() -> None:
        while not watched.poll(_POLL * 1000) and os.getppid() == expected:
            pass
        action()

    threading.Thread(target=watch, daemon=True, name="parent watch").start()


def when_process_ends(pid: int, action: Callable[[], object]) -> None:
    """Call *action* in a thread when the process *pid*, which need not be the parent, has ended."""
    began = started_at(pid)

    def watch() -> None:
        while started_at(pid) == began:
            time.sleep(_POLL)
        action()

    threading.Thread(target=watch, daemon=True, name=f"watch of process {pid}").start()


@contextmanager
def ending_with_us() -> Iterator[tuple[list[str], int]]:
    """Yield words to put before a command, and a descriptor to pass to it, so that it ends with this process.

    The command must lead a process group of its own (``start_new_session=True``); all of it is killed.
    """
    theirs, ours = os.pipe()
    try:
        yield [sys.executable, "-I", __file__, str(theirs)], theirs
    finally:
        os.close(theirs)
        os.close(ours)


def started_at(pid: int) -> str | None:
    """Return when *pid* began, in the system's own count; None if it does not live, or nobody can tell."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except (OSError, IndexError):
        return None


def machine_id() -> str | None:
    """Return what processes share that see each other's numbers (a boot, a name space); None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def living_processes(proc: Path = Path("/proc")) -> dict[int, int]:
    """Return every living process with its parent: from Linux's *proc*, or by `ps` where that lacks."""
    listed = _from_proc(proc) if (proc / "self/stat").exists() else _from_ps()
    return {pid: parent for pid, parent, state in listed if not state.startswith("Z")}


def _from_proc(proc: Path) -> Iterator[tuple[int, int, str]]:
    """Read Linux's own list, which is there in an image without `ps`, too."""
    for file in proc.glob("[0-9]*/stat"):
        # one that has just ended, or that is hidden as somebody else's
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            state, parent = file.read_text(errors="replace").rpartition(")")[2].split()[:2]
            yield int(file.parent.name), int(parent), state


def _from_ps() -> Iterator[tuple[int, int, str]]:
    columns = ["ps", "-A", "-o", "pid=,ppid=,stat="]
    try:
        listed = subprocess.run(columns, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        _log.warning("there is no `ps` here, so flow runs cannot be asked to commit")
        return
    for pid, parent, state in map(str.split, listed.stdout.splitlines()):
        yield int(pid), int(parent), state


if __name__ == "__main__":
    command = subprocess.Popen(sys.argv[2:], close_fds=False)  # locks are held as long as it lives
    when_parent_ends(int(sys.argv[1]), lambda: os.killpg(0, signal.SIGKILL))
    sys.exit(command.wait())
