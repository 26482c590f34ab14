"""What `sightline doctor` asks of the machine and of what is installed on it, whatever is to be served."""

from __future__ import annotations

import datetime
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import sightline
from sightline import __version__
from sightline.cli.doctor_findings import Check, ok, problem, warning
from sightline.config import MIB
from sightline.engines import engine_names, find_entry
from sightline.engines.environments import RECIPES, default_directory, find_environments, own_requirement, version_here
from sightline.errors import InvalidRequest

Found = Iterator[tuple[str, ...]]

_CHILD_S = 8.0
"""For a program that a check starts."""
_FILES = 4096 + 256
"""What `http.max_connections` comes to, and what else a server opens."""
_LITTLE_MEMORY = 1024 * MIB
"""Below it, `peek` and the decoders of pictures get in each other's way."""
_SHOWN = ("openvino", "numpy", "pillow", "msgspec", "starlette", "uvicorn", "tokenizers")
"""Packages whose versions somebody who helps wants to know."""
_TINY_MODEL = """
import sys
sys.modules["openvino_telemetry"] = None
import numpy, openvino
from openvino import opset13 as op
given = op.parameter([1, 3, 8, 8], numpy.float32)
core = openvino.Core()
compiled = core.compile_model(openvino.Model([op.relu(op.multiply(given, numpy.float32(2)))], [given]), "CPU")
out = compiled(numpy.ones((1, 3, 8, 8), numpy.float32))[0]
assert (out == 2).all(), out
print(core.get_property("CPU", "FULL_DEVICE_NAME"))
"""


def machine_checks() -> Sequence[Check]:
    return (
        Check("python", _python),
        Check("packages", _packages),
        Check("cpu", lambda: cpu(_read(Path("/proc/cpuinfo")), platform.machine())),
        Check("memory", lambda: memory(_available())),
        Check("open files", lambda: open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))),
        Check("clock", lambda: clock(datetime.datetime.now(datetime.UTC))),
        Check("proxies", lambda: proxies(urllib.request.getproxies_environment())),
        Check("openvino", _openvino),
        Check("peek", _peek),
        Check("engines", _engines),
        Check("extras", _extras),
    )


def _python() -> Found:
    yield ok(f"{platform.python_version()} in {sys.prefix}, on {platform.platform()}")
    yield ok(f"sightline {__version__} from {Path(sightline.__file__).parent}")


def _packages() -> Found:
    missing = [name for name, extra in _requirements() if extra is None and _version(name) is None]
    yield ok(", ".join(f"{name} {_version(name)}" for name in _SHOWN))
    if missing:
        yield problem(
            f"not installed, and needed: {', '.join(missing)}.", shlex.join(["pip", "install", *own_requirement()])
        )


def _requirements() -> Iterator[tuple[str, str | None]]:
    """Packages that ours names, each with the extra that wants it; those of other platforms left out."""
    for line in requires("sightline") or ():
        name, _, marker = line.partition(";")
        if "sys_platform" in marker and sys.platform == "win32":
            continue
        extra = re.search(r"extra == ['\"]([\w-]+)", marker)
        yield re.split(r"[^\w.-]", name.strip(), maxsplit=1)[0], extra[1] if extra else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def cpu(cpuinfo: str, machine: str) -> Found:
    """`cpuinfo`: the kernel's text; empty where there is none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", cpuinfo, re.M)
    known = flags[1].split() if flags else []
    fast = [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve") if name in known]
    told = f"{machine}, {cores} core{'' if cores == 1 else 's'} for this process; {', '.join(fast) or 'plain'}"
    if machine in ("x86_64", "AMD64") and known and "avx2" not in known:
        yield warning(
            f"{told}. Without AVX2, OpenVINO computes several times slower, and other engines may not start.",
            "In a virtual machine, pass the host's CPU through (QEMU: -cpu host).",
        )
    else:
        yield ok(told)


def _available() -> int | None:
    """Bytes that this process could still get: the machine's, or what the container it is in has left."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.M)
    left = [int(found[1]) * 1024] if found else []
    group = Path("/sys/fs/cgroup")
    for most, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):  # fmt: skip  # noqa: E501
        limit, taken = _read(group / most).strip(), _read(group / used).strip()
        if limit.isdecimal() and taken.isdecimal():
            left.append(max(0, int(limit) - int(taken)))
    return min(left, default=None)


def memory(available: int | None) -> Found:
    if available is None:
        yield ok("how much is free is not told by this system")
    elif available < _LITTLE_MEMORY:
        yield warning(
            f"{available // MIB} MiB are free, which is little even for the embedded model.",
            "Give it 1 GiB or more, and a model its weights and `kv_cache_mib` on top.",
        )
    else:
        yield ok(f"{available / 1024 / MIB:.1f} GiB are free")


def open_files(soft: int, hard: int) -> Found:
    """A server raises the soft limit to the hard one by itself."""
    if hard != resource.RLIM_INFINITY and hard < _FILES:
        yield warning(
            f"a process may open {hard}: fewer connections than the server would take.",
            "Raise it to 65536: `ulimit -Hn`, LimitNOFILE= in a systemd unit, --ulimit nofile= in Docker.",
        )
    else:
        yield ok(f"{soft} now, {'any number' if hard == resource.RLIM_INFINITY else hard} when the server asks")


def clock(now: datetime.datetime) -> Found:
    """Certificates, keys that expire and daily budgets go by it."""
    installed = datetime.datetime.fromtimestamp(Path(sightline.__file__).stat().st_mtime, datetime.UTC)
    if now < installed - datetime.timedelta(days=1):
        yield problem(
            f"it is {now:%Y-%m-%d %H:%M} UTC here, before Sightline was installed ({installed:%Y-%m-%d}).",
            "Set the clock (timedatectl set-ntp true): certificates, keys and budgets go by it.",
        )
    else:
        yield ok(f"{now:%Y-%m-%d %H:%M:%S} UTC")


def proxies(named: dict[str, str]) -> Found:
    """`named`: by scheme, as the environment has them; `no` for those that are gone round."""
    ways = [scheme for scheme in ("http", "https", "all") if scheme in named]
    bypasses = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]  # not in the stubs
    caught = [host for host in ("127.0.0.1", "localhost") if not bypasses(host, named)]
    if ways and caught:
        yield warning(
            f"{', '.join(f'{way}_proxy' for way in ways)} sends requests for {' and '.join(caught)} to a proxy, so "
            "clients on this machine will not reach a server on it.",
            f"export NO_PROXY=127.0.0.1,localhost{',' + named['no'] if named.get('no') else ''}",
        )
    else:
        yield ok("none that would catch what is for this machine")


def _child(arguments: Iterable[str]) -> tuple[str, str | None]:
    """What it printed, and what went wrong: a process of its own, so that one that crashes is only told of."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_CHILD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"not done after {_CHILD_S:g} s"
    if done.returncode < 0:
        return done.stdout.strip(), f"ended by signal {-done.returncode}"
    return done.stdout.strip(), (done.stderr.strip().splitlines() or ["no word"])[-1] if done.returncode else None


def _openvino() -> Found:
    out, wrong = _child(["-c", _TINY_MODEL])
    if wrong is None:
        yield ok(f"{_version('openvino')} computes on {out}")
    elif wrong.startswith("not done"):
        yield warning(f"a tiny model was {wrong}.", "The machine may be busy: run this once more when it is not.")
    else:
        yield problem(
            f"{_version('openvino')} cannot run a tiny model: {wrong}",
            "pip install --force-reinstall openvino; on Linux it needs glibc 2.28 or newer (not Alpine's musl).",
        )


def _peek() -> Found:
    """The whole way of a picture: decoder, engine, answer."""
    with as_file(files("sightline") / "ui" / "pictures" / "red-circle.png") as picture:
        out, wrong = _child(
            [
                "-m",
                "sightline.cli",
                "ask",
                "--engine",
                "openvino",
                "--model",
                "peek",
                str(picture),
                "What colour is the circle?",
            ]
        )
    if wrong is None and out == "red":
        yield ok("sees that the circle is red")
    elif wrong is not None and wrong.startswith("not done"):
        yield warning(f"had {wrong.replace('done', 'answered')}.", "The machine may be busy: run this once more.")
    else:
        yield problem(
            f"asked for the colour of a red circle: {wrong or repr(out[:80])}",
            "sightline ask --engine openvino --model peek PICTURE 'What colour is the circle?' says more.",
        )


def _engines() -> Found:
    """Those that are installed, each imported in a process of its own, as a server would."""
    missing = []
    made = {each.engine: each for each in find_environments([default_directory(name) for name in RECIPES])}
    for name in engine_names():
        try:
            entry = find_entry(name)
        except InvalidRequest as error:
            yield problem(error.message, "Uninstall that package, or mend it.")
            continue
        if name in made:
            yield ok(f"{name} {made[name].version}, in {made[name].directory}")
        if any(find_spec(module) is None for module in entry.needs) or (name == "vllm" and not version_here(name)):
            missing.extend([] if name in made else [name])
            continue
        if not entry.needs:
            continue
        _, wrong = _child(["-c", f"import importlib; [importlib.import_module(m) for m in {entry.needs!r}]"])
        if wrong is None:
            yield ok(f"{name} {version_here(name) or ''}".rstrip())
        elif wrong.startswith("not done"):
            yield warning(f"{name}: its import was {wrong}.", "The machine may be busy: run this once more.")
        else:
            yield problem(
                f"{name} is installed and cannot be imported: {wrong}",
                shlex.join(["pip", "install", "--force-reinstall", *own_requirement(name)])
                + (f", or: sightline engine install {name}" if name in RECIPES else ""),
            )
    yield ok("without packages of their own: openvino, remote, ollama, fake")
    if missing:
        yield ok(f"not installed: {', '.join(missing)} (`sightline engine list` says how)")


def _extras() -> Found:
    wanted: dict[str, list[str]] = {}
    for package, extra in _requirements():
        if extra is not None and extra not in RECIPES and extra not in ("dev", "testing", "llamacpp"):
            wanted.setdefault(extra, []).append(package)
    there = [extra for extra, packages in sorted(wanted.items()) if all(map(_version, packages))]
    absent = sorted(wanted.keys() - set(there))
    yield ok(
        f"installed: {', '.join(there) or 'none'}; not: {', '.join(absent) or 'none'} (pip install 'sightline[NAME]')"
    )
