"""Builds deploy/docker/Dockerfile without Docker, and runs what it makes: every step in a chroot, then the server in
namespaces of its own, as Docker would run it. As root, on Debian:

    apt-get install debootstrap
    python -m tests.deploy.chroot --root /var/tmp/sightline-image [--carry /etc/pip.conf]

What stands for `python:X-slim-DEBIAN` is the same Debian with its own Python X. `--carry` takes a file of this machine
along while it is built, such as the certificates and the settings by which pip reaches an index. The server has no
network but a loopback of its own, the root is mounted read-only, no capability is left. It is asked, killed and counted
from outside. Exit status 0: everything held.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.deploy.dockerfile import Instruction, Stage, pairs, read

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples" / "pictures"
MIB = 1024 * 1024
_DATA = "var/lib/sightline"
_CARRIED = ("/etc/resolv.conf", "/etc/hosts")
_APT = """DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";
"""
"""As Debian's images have it: apt keeps nothing."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of Python's images."""


def run(*command: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, text=True, check=True, **more)  # type: ignore[call-overload, no-any-return]


# ---- build


def make_base(image: str, base: Path, mirror: str) -> None:
    """`image`: python:3.11-slim-bookworm."""
    version, _, suite = image.partition(":")[2].split("-")
    packages = "--include=python3,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", packages, suite, base, mirror, stdout=subprocess.DEVNULL)
    (base / "etc/apt/apt.conf.d/docker-clean").write_text(_APT)
    for left in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(base / left)
        (base / left).mkdir()
    for name in ("python", "python3"):
        (base / "usr/local/bin" / name).symlink_to("/usr/bin/python3")
    told = run("chroot", base, "python", "--version", capture_output=True).stdout
    assert told.split()[1].startswith(f"{version}."), f"{suite} has {told.strip()}, and {image} is asked for"


@contextmanager
def mounted(root: Path) -> Iterator[None]:
    with ExitStack() as stack:
        for kind, source, where in (("proc", "proc", "proc"), ("tmpfs", "tmpfs", "tmp")):
            run("mount", "-t", kind, source, root / where)
            stack.callback(run, "umount", root / where)
        for device in ("null", "zero", "urandom", "random"):
            target = root / "dev" / device
            target.touch()
            run("mount", "--bind", f"/dev/{device}", target)
            stack.callback(run, "umount", target)
        yield


@contextmanager
def carried(root: Path, files: Sequence[str]) -> Iterator[None]:
    """With files of this machine in place, and its own again afterwards."""
    before = {file: (root / file[1:]).read_bytes() if (root / file[1:]).is_file() else None for file in files}
    for file in files:
        (root / file[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file[1:])
    yield
    for file, content in before.items():
        if content is None:
            (root / file[1:]).unlink()
        else:
            (root / file[1:]).write_bytes(content)


class Build:
    """One stage after the other, each in a directory."""

    def __init__(self, work: Path, base: Path, carry: Sequence[str]) -> None:
        self.work, self.base, self.carry = work, base, (*_CARRIED, *carry)
        self.roots: dict[str, Path] = {}

    def stage(self, stage: Stage) -> Path:
        root = self.roots[stage.name] = self.work / f"stage-{stage.name}"
        run("cp", "-a", self.base, root)
        environment = {"PATH": _PATH}
        where, user = "/", "0:0"
        with mounted(root), carried(root, self.carry):
            for each in stage.instructions:
                match each.name:
                    case "RUN":
                        self.run_step(root, each, environment, where, user)
                    case "COPY":
                        self.copy_step(root, each, where)
                    case "ENV":
                        for name, value in pairs(each.value):
                            environment[name] = value.replace("$PATH", environment["PATH"])
                    case "WORKDIR":
                        where = each.value
                        (root / where[1:]).mkdir(parents=True, exist_ok=True)
                    case "USER":
                        user = each.value
                    case _:
                        pass  # metadata: what the run below is told by
        return root

    def run_step(self, root: Path, each: Instruction, environment: dict[str, str], where: str, user: str) -> None:
        print(f"RUN {textwrap.shorten(each.value, 110)}", flush=True)
        began = time.monotonic()
        command = f"cd {shlex.quote(where)} && {each.value}"
        given = {**environment, "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
        run("chroot", f"--userspec={user}", root, "sh", "-ec", command, env=given, stdout=subprocess.DEVNULL)
        print(f"    {time.monotonic() - began:.0f} s", flush=True)

    def copy_step(self, root: Path, each: Instruction, where: str) -> None:
        """As Docker does: of a directory its content; owned by root, whoever owns it here."""
        *sources, target = each.words
        origin = self.roots[sources.pop(0).removeprefix("--from=")] if sources[0].startswith("--from=") else ROOT
        into = root / os.path.join(where, target)[1:]
        for source in sources:
            found = origin / source.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, into, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_IGNORED if origin == ROOT else ()))  # fmt: skip  # noqa: E501
            else:
                many = target.endswith("/") or len(sources) > 1
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, into / found.name if many else into)
        if origin == ROOT:
            run("chown", "-R", "0:0", into)


_IGNORED = ("__pycache__", "*.pyc")


# ---- run


class Container:
    """The image's process in namespaces of its own: what `docker run --read-only --cap-drop ALL` does."""

    SCRIPT = textwrap.dedent("""
        ip link set lo up
        mount --bind "$R" "$R" && mount -o remount,bind,ro "$R"
        mount -t proc proc "$R/proc" && mount -t tmpfs tmpfs "$R/tmp" && mount -t tmpfs tmpfs "$R/dev"
        for each in null zero random urandom; do touch "$R/dev/$each" && mount --bind /dev/$each "$R/dev/$each"; done
        mkdir "$R/dev/shm" && mount -t tmpfs tmpfs "$R/dev/shm"
        mount --bind "$DATA" "$R/var/lib/sightline"
        exec chroot "$R" "$@"
    """)

    def __init__(self, root: Path, data: Path, final: Stage, *, entrypoint: Sequence[str] | None = None) -> None:
        self.root, self.data, self.final = root, data, final
        self.entrypoint = list(final.last("ENTRYPOINT").words if entrypoint is None else entrypoint)
        self.environment = {name: value.replace("$PATH", _PATH) for name, value in final.environment.items()}
        uid, _, gid = final.last("USER").value.partition(":")
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        user = [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        nothing = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        self.confined = ["setpriv", *user, *nothing, "env", "-i", f"--chdir={final.last('WORKDIR').value}", *variables]
        self.process: subprocess.Popen[str] | None = None

    def start(self, *command: str) -> subprocess.Popen[str]:
        inside = [*self.confined, *self.entrypoint, *command]
        isolated = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child", "sh", "-ec", self.SCRIPT]
        environment = {"PATH": os.environ["PATH"], "R": str(self.root), "DATA": str(self.data)}
        self.process = subprocess.Popen(
            [*isolated, "sh", *inside], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return self.process

    @property
    def first(self) -> int:
        """Process 1 of its namespace, by the number that it has outside."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def processes(self) -> list[dict[str, str]]:
        space = os.readlink(f"/proc/{self.first}/ns/pid")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/pid") == space:
                    lines = (path / "status").read_text().splitlines()
                    found.append({name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
            except OSError:
                continue
        return found

    def inside(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        entered = ["nsenter", f"--target={self.first}", "--mount", "--pid", "--net", "--ipc", "chroot", str(self.root)]
        return subprocess.run(
            [*entered, *self.confined, *command], text=True, capture_output=True, check=check, timeout=120
        )

    def stop(self) -> tuple[int, float]:
        assert self.process is not None
        began = time.monotonic()
        os.kill(self.first, signal.SIGTERM)
        return self.process.wait(60), time.monotonic() - began


ASK = """
import json, sys, urllib.request
url, key, body = sys.argv[1:4]
headers = {"authorization": "Bearer " + key, "content-type": "application/json"} if key else {}
request = urllib.request.Request(url, sys.stdin.buffer.read() if body else None, headers)
try:
    with urllib.request.urlopen(request, timeout=60) as reply:
        print(reply.status, reply.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def held(what: str, holds: bool, more: str = "") -> bool:
    print(f"{'held  ' if holds else 'BROKEN'}  {what}{f': {more}' if more else ''}", flush=True)
    return holds


def ask(box: Container, path: str, key: str = "", body: dict[str, str] | None = None) -> tuple[int, str]:
    entered = ["nsenter", f"--target={box.first}", "--net", sys.executable, "-c", ASK]
    command = [*entered, f"http://127.0.0.1:8000{path}", key, "yes" if body else ""]
    done = subprocess.run(command, input=json.dumps(body), text=True, capture_output=True, check=True, timeout=120)
    status, _, text = done.stdout.partition(" ")
    return int(status), text


def is_ready(box: Container) -> bool:
    """By the image's own HEALTHCHECK."""
    health = Instruction("HEALTHCHECK", box.final.last("HEALTHCHECK").value.partition("CMD ")[2])
    for _ in range(240):
        assert box.process is not None
        if box.process.poll() is not None:
            return False
        try:
            if box.inside(*health.words, check=False).returncode == 0:
                return True
        except (IndexError, FileNotFoundError):
            pass
        time.sleep(0.5)
    return False


def try_out(root: Path, data: Path, final: Stage) -> Iterator[bool]:
    command = final.last("CMD").words
    box = Container(root, data, final)
    said = box.start(*command).communicate(timeout=120)[0]
    yield held("without a key it does not start", "no key protects it" in said, said.strip())
    made = Container(root, data, final)
    told = made.start("keys", "create", "first", "--admin").communicate(timeout=120)[0]
    key = next((word for word in told.split() if word.startswith("sl-")), "")
    yield held("a key is made in the volume", key != "", "" if key else told)

    box = Container(root, data, final)
    began = time.monotonic()
    process = box.start(*command)
    yield held("HEALTHCHECK says that it is ready", is_ready(box), f"{time.monotonic() - began:.1f} s")
    yield held("no answer without the key", ask(box, "/v1/models")[0] == 401)
    for name, question, right in (
        ("red-circle.png", "What colour is the circle?", "red"),
        ("yellow-star.png", "What shape is it?", "star"),
    ):
        picture = base64.b64encode((PICTURES / name).read_bytes()).decode()
        status, text = ask(box, "/analyze", key, {"prompt": question, "image_base64": picture})
        yield held(question, status == 200 and json.loads(text)["result"] == right, right)

    seen = box.processes()
    uid = final.last("USER").value.partition(":")[0]
    yield held(
        "every process is its user, without a capability, and can gain none",
        all(
            set(each["Uid"].split()) == {uid} and int(each["CapBnd"], 16) == int(each["CapEff"], 16) == 0
            and each["NoNewPrivs"] == "1"
            for each in seen
        ),
        ", ".join(sorted(each["Name"] for each in seen)),
    )  # fmt: skip
    tried = ["/x", "/opt/sightline/x", "/usr/bin/x", "/etc/x", "/root/x", "/var/x"]
    written = [path for path in tried if box.inside("touch", path, check=False).returncode == 0]
    yield held("nothing is written but the volume and /tmp", not written, " ".join(written))
    yield held("orphans are reaped", orphans(box) == 0)
    code, seconds = box.stop()
    yield held("SIGTERM ends it with 0", code == 0, f"{seconds:.2f} s; {process.stdout.read().count(chr(10)) if process.stdout else 0} lines of log")  # fmt: skip  # noqa: E501
    kept = {path.stat().st_uid for path in data.rglob("*")}
    yield held("what it keeps is its user's", kept == {int(uid)}, f"{len(list(data.rglob('*')))} files")

    bare = Container(root, data, final, entrypoint=["sightline"])
    bare.start(*command)
    is_ready(bare)
    left = orphans(bare)
    code, seconds = bare.stop()
    print(f"        (with no tini before it: {left} of 5 orphans stay as zombies; SIGTERM: {code}, {seconds:.2f} s)")


def orphans(box: Container) -> int:
    """How many of five stay as zombies of process 1."""
    before = zombies(box)
    box.inside("sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.3 &) ; done")
    time.sleep(1.5)
    return zombies(box) - before


def zombies(box: Container) -> int:
    return sum(each["State"].startswith("Z") and each["PPid"] == str(box.first) for each in box.processes())


# ---- count


def size(root: Path) -> int:
    """Bytes of files, each once."""
    seen, total = set[int](), 0
    for directory, _, names in os.walk(root):
        for name in names:
            found = os.lstat(os.path.join(directory, name))
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_size
    return total


def report_size(base: Path, root: Path) -> None:
    whole, added = size(root), size(root) - size(base)
    print(
        f"Image: {whole / MIB:.0f} MiB of files, {added / MIB:.0f} MiB over its base; the largest of Python's packages:"
    )
    (packages,) = (root / "opt/sightline/lib").glob("python3.*/site-packages")
    sizes = {path.name: size(path) if path.is_dir() else path.stat().st_size for path in packages.iterdir()}
    for name, count in sorted(sizes.items(), key=lambda item: -item[1])[:8]:
        print(f"  {count / MIB:6.1f} MiB  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds the Dockerfile in a chroot, and runs what it makes.")
    parser.add_argument("--root", type=Path, required=True, help="an empty directory, or one of a run before")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="of Debian")
    parser.add_argument("--carry", action="append", default=[], help="a file of this machine, while it is built")
    parser.add_argument("--again", action="store_true", help="run what is there, without building it")
    args = parser.parse_args()
    stages = read(ROOT / "deploy/docker/Dockerfile")
    base, work = args.root / "base", args.root / "stages"
    final = work / f"stage-{stages[-1].name}"
    if not args.again:
        if not base.exists():
            make_base(stages[0].image, base, args.mirror)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        build = Build(work, base, args.carry)
        for stage in stages:
            final = build.stage(stage)
    report_size(base, final)
    data = args.root / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(final / _DATA, data)  # as Docker fills a new volume
    shutil.copystat(final / _DATA, data)
    os.chown(data, (final / _DATA).stat().st_uid, (final / _DATA).stat().st_gid)
    return int(not all(list(try_out(final, data, stages[-1]))))


if __name__ == "__main__":
    raise SystemExit(main())
