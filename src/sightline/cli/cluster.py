"""`sightline cluster`: models on Ray Serve. Writes what is to run; starts it, shows it and ends it."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from sightline.cluster import kuberay
from sightline.cluster.serve_config import (
    NAME,
    Answers,
    of_answers,
    of_file,
    to_anyscale_service,
    to_replicas,
    to_serve_config,
)
from sightline.config import is_loopback, state_dir, variable
from sightline.engines import engine_names
from sightline.errors import EngineUnavailable, InvalidRequest

_DASHBOARD = "http://127.0.0.1:8265"
_START_S = 600.0
_STARTED = "Ray runtime started"
"""Of Ray's own log, when its machine is part of it: its dashboard answers sooner."""
_RAY_START_S = 120.0
_RAY_STARTS = 3
"""Ray gives itself up where its agents have not come up within 15 s, which on a busy machine they have not."""
_RAY_STOP_S = 40.0
"""Ray drains its machine for up to 30 s first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    config = actions.add_parser("config", help="write the file that `serve run` and `serve deploy` take")
    config.add_argument("file", nargs="?", type=Path, metavar="FILE", help="sightline.yaml, whose models are to be run")
    config.add_argument("--model", metavar="SOURCE", help="without FILE: what `source` of a model may be")
    config.add_argument("--engine", choices=engine_names(), help="what runs it (default: openvino)")
    config.add_argument("--name", help="what requests call it")
    config.add_argument("--accelerator", metavar="KIND", help="Ray's name of a kind, such as A10G (default: none)")
    config.add_argument("--replicas", metavar="N|MIN-MAX", help="of each model: 2, or 0-8 (default: 1)")
    config.add_argument(
        "--target-tokens", type=int, metavar="N", help="with MIN-MAX: what one replica may have to do (default: 4096)"
    )
    config.add_argument("--token-variable", metavar="NAME", help="of the machines' environment: the hub's token")
    config.add_argument("--host", default="127.0.0.1", help="address that Ray's proxies listen on")
    config.add_argument("--port", type=int, default=8000)
    config.add_argument("--anyscale", metavar="IMAGE", help="write Anyscale's service file, with this image")
    config.add_argument("--kuberay", metavar="IMAGE", help="write a RayService for Kubernetes, with this image")
    config.add_argument("--ray-version", default="2.60.0", metavar="N", help="with --kuberay: of the Ray in the image")
    config.add_argument("--secret", metavar="NAME", help="with --kuberay: whose entries are variables of the pods")
    config.add_argument("-o", "--out", type=Path, metavar="FILE", help="where to (default: standard output)")
    up = actions.add_parser("up", help="run such a file; starts Ray on this machine if there is none")
    up.add_argument("file", type=Path, metavar="FILE", help="what `sightline cluster config` wrote")
    status = actions.add_parser("status", help="show what runs")
    down = actions.add_parser("down", help="end it, and the Ray that `up` started")
    for action in (up, status, down):
        action.add_argument("--address", default=None, metavar="URL", help=f"Ray's dashboard (default: {_DASHBOARD})")


def run(args: argparse.Namespace) -> int:
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "config": _config, "up": _up, "status": _status, "down": _down,
    }  # fmt: skip
    return actions[args.action](args)


def _config(args: argparse.Namespace) -> int:
    host = "0.0.0.0" if args.kuberay else args.host
    if not is_loopback(host) and args.file is None:
        raise InvalidRequest(
            f"Listening on {host} would let other machines use the models, and no key protects them. Name a "
            "sightline.yaml that says `access` and `allowed_hosts`, or listen on 127.0.0.1.",
            param="host",
        )
    app = _of_file(args) if args.file is not None else of_answers(_ask(args))
    if args.kuberay:
        head = "# kubectl apply -f FILE. UNPROVEN: held to KubeRay's schema, never run on Kubernetes from here.\n"
        options = kuberay.Kubernetes(image=args.kuberay, ray_version=args.ray_version, secret=args.secret)
        written = kuberay.of_args(app, options)
    elif args.anyscale:
        head = "# Anyscale's service file. UNPROVEN: written by its documented fields, never deployed from here.\n"
        written = to_anyscale_service(app, image=args.anyscale)
    else:
        head = "# serve run FILE, serve deploy FILE, or: sightline cluster up FILE\n"
        written = to_serve_config(app, host=args.host, port=args.port)
    text = head + kuberay.to_yaml(written)
    if args.out is None:
        print(text, end="")
    else:
        args.out.write_text(text, encoding="utf-8")
        following = f"kubectl apply -f {args.out}" if args.kuberay else f"sightline cluster up {args.out}"
        print(f"Wrote {args.out}. Next: {following}", file=sys.stderr)
    return 0


def _of_file(args: argparse.Namespace) -> dict[str, Any]:
    for name in ("model", "engine", "name", "token_variable"):
        if getattr(args, name) is not None:
            raise InvalidRequest(f"--{name.replace('_', '-')} is about one model, and {args.file} names its own.")
    values = _read(args.file)
    replicas = to_replicas(args.replicas or "1")
    found: dict[str, Any] = of_file(
        values, args.file.parent, replicas, args.accelerator, target_tokens=args.target_tokens
    )
    return found


def _ask(args: argparse.Namespace) -> Answers:
    """What the arguments leave open, of somebody at a terminal; defaults where there is nobody, or --model is given."""

    def answer(given: str | None, question: str, default: str) -> str:
        if given is not None or args.model is not None or not sys.stdin.isatty():
            return default if given is None else given
        return input(f"{question} [{default or 'none'}]: ").strip() or default

    model = answer(args.model, "Model: peek, a directory, or a hub's id", "peek")
    engine = answer(args.engine, f"Engine ({', '.join(engine_names())})", "openvino")
    if engine not in engine_names():
        raise InvalidRequest(f"There is no engine {engine!r}. Engines: {', '.join(engine_names())}.", param="engine")
    return Answers(
        model=model,
        engine=engine,
        name=args.name,
        accelerator=answer(args.accelerator, "Accelerator, as Ray names it: A10G, H100 ...", "") or None,
        replicas=to_replicas(answer(args.replicas, "Replicas: 2, or 0-8 for as many as there is work for", "1")),
        target_tokens=args.target_tokens,
        token_variable=answer(args.token_variable, "Variable of the machines that holds the hub's token", "") or None,
    )


def _up(args: argparse.Namespace) -> int:
    config = _read(args.file)
    address = args.address or _DASHBOARD
    if not _is_there(address):
        if not is_loopback(urlsplit(address).hostname or ""):
            raise EngineUnavailable(f"No Ray answers at {address}.")
        _start_ray(address)
    client = _client(address)
    try:
        client.deploy_applications(config)
    except RuntimeError as error:
        raise InvalidRequest(f"Ray does not take {args.file}: {str(error)[-1000:]}") from None
    told = ""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        application = client.get_serve_details().get("applications", {}).get(NAME, {})
        if (status := application.get("status", "NOT_STARTED")) != told:
            print(f"{NAME}: {status.lower().replace('_', ' ')}", flush=True)
            told = status
        if status == "RUNNING":
            return 0
        if status == "DEPLOY_FAILED":
            raise EngineUnavailable(f"It could not be deployed: {application.get('message', '')[-2000:]}")
        time.sleep(1)
    raise EngineUnavailable(
        f"It does not run after {_START_S:g} s. `sightline cluster status` shows what it waits for."
    )


def _status(args: argparse.Namespace) -> int:
    details = _client(args.address or _DASHBOARD).get_serve_details()
    applications = details.get("applications", {})
    if not applications:
        print("Nothing runs.")
    for name, application in applications.items():
        print(f"{name}: {application['status'].lower().replace('_', ' ')} {application.get('message', '')}".rstrip())
        for deployment, found in application.get("deployments", {}).items():
            running = sum(replica["state"] == "RUNNING" for replica in found["replicas"])
            print(f"  {deployment}: {found['status'].lower()}, {running} of {found['target_num_replicas']} replicas")
    return 0


def _down(args: argparse.Namespace) -> int:
    try:
        _client(args.address or _DASHBOARD).delete_applications()
    except EngineUnavailable:
        if not _stop_ray():
            raise
    else:
        _stop_ray()
    print("Nothing runs any more.")
    return 0


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{file} cannot be read: {type(error).__name__}.", param="file") from None
    if not isinstance(values, dict):
        raise InvalidRequest(f"{file} must hold settings.", param="file")
    return values


# --- Ray -------------------------------------------------------------------------------------------------------------


def _client(address: str) -> Any:
    """Of Ray's REST API, with its token."""
    _require_ray()
    from ray.dashboard.modules.serve.sdk import (  # type: ignore[import-not-found, unused-ignore]
        ServeSubmissionClient,
    )

    try:
        return ServeSubmissionClient(address)
    except (ConnectionError, RuntimeError):
        raise EngineUnavailable(f"No Ray answers at {address}. `sightline cluster up FILE` starts one.") from None


def _is_there(address: str) -> bool:
    try:
        _client(address)
    except EngineUnavailable:
        return False
    return True


def _require_ray() -> None:
    if find_spec("ray") is None:
        raise InvalidRequest("This needs Ray: pip install 'ray[serve]>=2.60'.")
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's library reads it when it is imported


def _start_ray(address: str) -> None:
    """Of one machine, with a token; its dashboard at `address`, on loopback. Returns when that answers."""
    print("Ray is started on this machine ...", flush=True)
    environment = {"RAY_AUTH_MODE": "token", "RAY_SERVE_ENABLE_HA_PROXY": "1", **os.environ}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    has_token = variable("RAY_AUTH_TOKEN") or variable("RAY_AUTH_TOKEN_PATH")
    if not has_token and not (Path.home() / ".ray" / "auth_token").exists():
        subprocess.run([*ray, "get-auth-token", "--generate"], env=environment, capture_output=True, check=False)
    port = urlsplit(address).port or 8265
    ours = state_dir() / "cluster"
    ours.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [
        *ray, "start", "--head", "--block", "--port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
        "--dashboard-agent-listen-port=0", "--disable-usage-stats",
    ]  # fmt: skip
    log = ours / "ray.log"
    for tries_left in reversed(range(_RAY_STARTS)):
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        (ours / "ray.pid").write_text(str(process.pid))
        deadline = time.monotonic() + _RAY_START_S
        while process.poll() is None and time.monotonic() < deadline:
            if _STARTED in log.read_text(errors="replace") and _is_there(address):
                return
            time.sleep(0.5)
        _stop_ray()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it had started, and has our port
        if not tries_left:
            raise EngineUnavailable(f"Ray could not be started: {log.read_text(errors='replace').strip()[-1000:]}")
        print("Ray did not come up, and is started again ...", flush=True)


def _is_ray(process: int) -> bool:
    """Whether that process still is what `up` started: its number may be another's by now."""
    shown = subprocess.run(["ps", "-o", "command=", "-p", str(process)], capture_output=True, text=True, check=False)
    return "ray.scripts.scripts start" in shown.stdout


def _stop_ray() -> bool:
    """The one that `up` started, and whether there was one; another is somebody else's to stop."""
    file = state_dir() / "cluster" / "ray.pid"
    if not file.exists():
        return False
    process = int(file.read_text())
    file.unlink()
    if not _is_ray(process):
        return False
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)  # it ends all that it started
        deadline = time.monotonic() + _RAY_STOP_S
        while _is_ray(process):
            if time.monotonic() > deadline:
                os.killpg(process, signal.SIGKILL)
            time.sleep(0.2)
    return True
