"""A process of a server that has several: its core, or a front end. It lives no longer than its parent.

    python -m sightline.frontends core CONTROL_FD
    python -m sightline.frontends front CONTROL_FD LINK_FD LISTENER_FD...

Started by `processes.py` only. All else comes in the first frame, because process lists are public and settings are
not.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys

from sightline import __version__, logs
from sightline.frontends import frames, orders

log = logging.getLogger("sightline.frontends")

_PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>."""
_SWITCH_S = 0.0005
"""As `sightline serve` sets it."""


def _die_with_parent() -> None:
    """End-of-file on the control socket tells of the parent's death, but only when Python runs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _socket(fd: str) -> socket.socket:
    sock = socket.socket(fileno=int(fd))
    sock.set_inheritable(False)
    return sock


def _first_frame(control: socket.socket) -> orders.Start:
    """Read before there is an event loop: which one that is, the settings say. Ends the process with its parent."""
    length = _read(control, frames.LENGTH_BYTES)
    start = orders.decode_from_parent(_read(control, int.from_bytes(length, "little")))
    assert isinstance(start, orders.Start), "it comes first"
    return start


def _read(control: socket.socket, size: int) -> bytes:
    data = control.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        os._exit(1)
    return data


def main(role: str, control_fd: str, *fds: str) -> None:
    # The parent alone is told to stop, and tells us in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda *_: None)  # handled, not ignored: what is ignored stays so in an engine
    _die_with_parent()
    control = _socket(control_fd)
    start = _first_frame(control)
    sys.setswitchinterval(_SWITCH_S)
    logs.set_up(start.settings.log_level, start.settings.log_format)
    if start.version != __version__:  # it was replaced on the disk, and the two might not understand each other
        log.error("this is version %s, and the server runs %s: start it anew", __version__, start.version)
        os._exit(1)
    if role == "core":
        from sightline.frontends.core_process import run as run_core

        run_core(start, control)
    else:
        from sightline.frontends.front_process import run as run_front

        link, *listeners = map(_socket, fds)
        run_front(start, control, link, listeners)
    logging.shutdown()
    os._exit(0)  # threads must not keep a closed process alive


if __name__ == "__main__":
    main(*sys.argv[1:])
