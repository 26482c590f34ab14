"""`sightline cluster`: models on Ray Serve. Writes what is to run; starts it, shows it and ends it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from sightline.cluster.serve_config import (
    NAME,
    Answers,
    of_answers,
    of_file,
    to_anyscale_service,
    to_replicas,
    to_serve_config,
)
from sightline.config import is_loopback
from sightline.engines import engine_names
from sightline.errors import EngineUnavailable, InvalidRequest

_DASHBOARD = "http://127.0.0.1:8265"
_START_S = 600.0
_STARTED_HEAD = "A Ray of one machine was started here. `sightline cluster down --ray` stops it too."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    config = actions.add_parser("config", help="write the file that `serve run` and `serve deploy` take")
    config.add_argument("file", nargs="?", type=Path, metavar="FILE", help="sightline.yaml, whose models are to be run")
    config.add_argument("--model", metavar="SOURCE", help="without FILE: what `source` of a model may be")
    config.add_argument("--engine", choices=engine_names(), help="what runs it (default: openvino)")
    config.add_argument("--name", help="what requests call it")
    config.add_argument("--accelerator", metavar="KIND", help="Ray's name of a kind, such as A10G (default: none)")
    config.add_argument("--replicas", metavar="N|MIN-MAX", help="of each model: 2, or 0-8 (default: 1)")
    config.add_argument("--token-variable", metavar="NAME", help="of the machines' environment: the hub's token")
    config.add_argument("--host", default="127.0.0.1", help="address that Ray's proxies listen on")
    config.add_argument("--port", type=int, default=8000)
    config.add_argument("--anyscale", metavar="IMAGE", help="write Anyscale's service file, with this image")
    config.add_argument("-o", "--out", type=Path, metavar="FILE", help="where to (default: standard output)")
    up = actions.add_parser("up", help="run such a file; starts Ray on this machine if there is none")
    up.add_argument("file", type=Path, metavar="FILE", help="what `sightline cluster config` wrote")
    status = actions.add_parser("status", help="show what runs")
    down = actions.add_parser("down", help="end it")
    down.add_argument("--ray", action="store_true", help="and Ray itself on this machine")
    for action in (up, status, down):
        action.add_argument("--address", default=None, metavar="URL", help=f"Ray's dashboard (default: {_DASHBOARD})")


def run(args: argparse.Namespace) -> int:
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "config": _config, "up": _up, "status": _status, "down": _down,
    }  # fmt: skip
    return actions[args.action](args)


def _config(args: argparse.Namespace) -> int:
    if not is_loopback(args.host) and args.file is None:
        raise InvalidRequest(
            f"Listening on {args.host} would let other machines use the models, and no key protects them. Name a "
            "sightline.yaml that says `access` and `allowed_hosts`, or listen on 127.0.0.1.",
            param="host",
        )
    app = _of_file(args) if args.file is not None else of_answers(_ask(args))
    if args.anyscale:
        head = "# Anyscale's service file. UNPROVEN: written by its documented fields, never deployed from here.\n"
        written = to_anyscale_service(app, image=args.anyscale)
    else:
        head = "# serve run FILE, serve deploy FILE, or: sightline cluster up FILE\n"
        written = to_serve_config(app, host=args.host, port=args.port)
    text = head + yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
    if args.out is None:
        print(text, end="")
    else:
        args.out.write_text(text, encoding="utf-8")
        print(f"Wrote {args.out}. Next: sightline cluster up {args.out}", file=sys.stderr)
    return 0


def _of_file(args: argparse.Namespace) -> dict[str, Any]:
    for name in ("model", "engine", "name", "token_variable"):
        if getattr(args, name) is not None:
            raise InvalidRequest(f"--{name.replace('_', '-')} is about one model, and {args.file} names its own.")
    values = _read(args.file)
    found: dict[str, Any] = of_file(values, args.file.parent, to_replicas(args.replicas or "1"), args.accelerator)
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
        token_variable=answer(args.token_variable, "Variable of the machines that holds the hub's token", "") or None,
    )


def _up(args: argparse.Namespace) -> int:
    config = _read(args.file)
    address = args.address or os.environ.get("RAY_DASHBOARD_ADDRESS") or _DASHBOARD
    if not _is_there(address):
        if args.address is not None:
            raise EngineUnavailable(f"No Ray answers at {address}.")
        _start_ray()
    client = _client(address)
    client.deploy_applications(config)
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
    _client(args.address or _DASHBOARD).delete_applications()
    print("Nothing runs any more.")
    if args.ray:
        _ray("stop")
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


def _start_ray() -> None:
    """Of one machine, its dashboard on loopback and with a token."""
    print("Ray is started on this machine ...", flush=True)
    token = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ and not token.exists():
        _ray("get-auth-token", "--generate")
    _ray("start", "--head", "--dashboard-host=127.0.0.1", "--disable-usage-stats")
    print(_STARTED_HEAD, flush=True)


def _ray(*arguments: str) -> None:
    """Ray's command line, of the Python that runs this. Raises `EngineUnavailable` with its last words."""
    environment = {"RAY_AUTH_MODE": "token", "RAY_SERVE_ENABLE_HA_PROXY": "1", **os.environ}
    command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineUnavailable(f"ray {arguments[0]} failed: {done.stderr.strip()[-1000:]}")
