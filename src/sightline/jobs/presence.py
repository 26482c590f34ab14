"""Which processes that share a directory are alive: each holds a lock that the kernel lets go when the process ends,
however it ends. So what a killed server held is free at once, and not when its leases run out."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: leases run out by themselves
    fcntl = None  # type: ignore[assignment]


def name_of(directory: Path) -> str:
    """A name of the directory, the same for all who share it and for nobody else. Raises `OSError`."""
    file = directory / ".name"
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = directory / f".name-{os.urandom(8).hex()}"
        made.write_text(os.urandom(16).hex())
        try:
            os.link(made, file)
        except FileExistsError:  # another was first
            pass
        finally:
            made.unlink()
    return file.read_text()


class Presence:
    """This process, or part of it, among those that use `directory`."""

    def __init__(self, directory: Path) -> None:
        self.name = os.urandom(8).hex()
        self._directory = directory
        self._held: int | None = None

    def begin(self) -> None:
        """Raises `OSError`."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held = os.open(self._directory / self.name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if fcntl is not None:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def end(self) -> None:
        if self._held is not None:
            (self._directory / self.name).unlink(missing_ok=True)
            os.close(self._held)
            self._held = None

    def is_alive(self, name: str) -> bool:
        """Also of one of whom it cannot be told. The file of one that is dead is gone afterwards."""
        if name == self.name or fcntl is None:
            return True
        path = self._directory / name
        try:
            held = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(held)
