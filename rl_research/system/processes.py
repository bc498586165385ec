"""Run a command that ends as soon as whoever started it has, however that was: ``leash.py FD COMMAND…``.

FD is the reading end of a pipe whose other end the starter keeps. A program by itself, which imports
nothing of the package.
"""

import os
import signal
import subprocess
import sys
import threading


def _end_with(starter: int) -> None:
    os.read(starter, 1)  # nobody writes: it returns when the starter has gone
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    command = subprocess.Popen(sys.argv[2:], close_fds=False)  # locks are held as long as it lives
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    sys.exit(command.wait())
