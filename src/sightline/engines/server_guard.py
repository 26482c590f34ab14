"""Stands between us and a server program that we start, so that it never outlives us, whatever becomes of us.

    python -I -S server_guard.py FD PROGRAM ARGUMENT...

A program of its own, of the standard library only: it is up in milliseconds and needs nothing of ours. It leads a
session and a process group in which the server runs. FD is one end of a socket pair whose other end its parent holds:

    parent -> guard   b"T": end the server gently.  End of file: the parent is dead, all are killed at once.
    guard -> parent   the server's exit status as a number, negative for a signal, when it has ended by itself.

When the server has ended, whatever it has started is killed with the group.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>."""
NOT_STARTED = 127
"""As a shell has it, of a program that is not there or may not be run."""


def main(fd: str, *command: str) -> None:
    parent = socket.socket(fileno=int(fd))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # handled, not ignored: what is ignored stays so in the server
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        server = subprocess.Popen(command, preexec_fn=_die_with_guard)
    except OSError as error:
        os.write(sys.stdout.fileno(), f"ERROR {error.strerror}: {command[0]}\n".encode())
        parent.sendall(str(NOT_STARTED).encode())
        return
    ends: list[socket.socket | int] = [parent, woken]
    while server.poll() is None:
        readable, _, _ = select.select(ends, [], [])
        if parent in readable:
            if not parent.recv(1):
                break
            server.terminate()
        if woken in readable:
            os.read(woken, 4096)
    else:
        with contextlib.suppress(OSError):
            parent.sendall(str(server.returncode).encode())
    os.killpg(0, signal.SIGKILL)


def _die_with_guard() -> None:
    """Runs between fork and exec, in a process that has one thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
