"""`sightline ui`: a page in the browser to chat with the models about pictures, for a server that runs or with one.

sightline ui                          the page for the server at http://127.0.0.1:8000
sightline ui --url https://gpu:8000   for another
sightline ui --model peek             the server too, in the same process; so with a file, or any flag of `serve`
"""

from __future__ import annotations

import argparse

from sightline import logs
from sightline.cli import serve as serving
from sightline.cli.serve import listen
from sightline.client import ClientError
from sightline.config import Settings, environment, is_loopback
from sightline.errors import InvalidRequest
from sightline.server import Endpoint, serve
from sightline.ui.mount import to_standalone
from sightline.ui.sign_in import ROOT

PORT = 7860
_DRAIN_S = 2.0
"""An answer that is half shown when the page's server is stopped."""
_OF_THE_PAGE = {"help", "url", "host", "port", "allowed_host", "open_to_anyone", "log_level", "log_format"}
"""What has its meaning without a server inside."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        metavar="URL",
        help="the server to talk to (default: SIGHTLINE_URL, or http://127.0.0.1:8000). SIGHTLINE_API_KEY, where it is "
        "set, is used for everybody who opens the page; else it asks for a key if the server wants one",
    )
    serving.add_arguments(parser)
    next(action for action in parser._actions if action.dest == "ui").help = argparse.SUPPRESS  # it is what we do
    server = {action.dest: action for action in parser._actions if action.dest not in _OF_THE_PAGE}
    # None until it is said: `--model peek` is the default, and asks for a server all the same.
    unsaid = {name: (action.default, action.type or str) for name, action in server.items()}
    parser.set_defaults(port=None, **dict.fromkeys(server), unsaid=unsaid)


def run(args: argparse.Namespace) -> int:
    said = [name for name in args.unsaid if getattr(args, name) is not None]
    args.port = PORT if args.port is None else args.port
    if not said:
        return _run_page(args)
    if args.url is not None:
        what = "FILE" if said[0] == "file" else f"--{said[0].replace('_', '-')}"
        raise InvalidRequest(
            f"--url names a server that runs, and {what} is about one that is started here. Leave one of them out.",
            param=said[0],
        )
    for name, (default, read) in args.unsaid.items():
        if name not in said:  # what the environment says is text, as argparse knows
            setattr(args, name, read(default) if isinstance(default, str) else default)
    args.ui = True
    return serving.run(args)


def _run_page(args: argparse.Namespace) -> int:
    host = args.host or "127.0.0.1"
    local = is_loopback(host)
    if not local and not args.open_to_anyone:
        raise InvalidRequest(
            f"Listening on {host} would let other machines use the page, and a server whose key you have named too. "
            "Listen on 127.0.0.1, or say --open-to-anyone if that is what you want.",
            param="host",
        )
    settings = Settings()
    hosts = (*settings.allowed_hosts, *args.allowed_host) if local or args.allowed_host else ("*",)
    logs.set_up(args.log_level or "warning", args.log_format)
    try:
        page = to_standalone(args.url, environment("API_KEY"), hosts)
    except ClientError as error:
        raise InvalidRequest(str(error), param="url") from None
    listener = listen(host, args.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"A page to chat with the models of {page.server_url}: http://{shown}:{port}{ROOT}", flush=True)

    async def end() -> None:
        page.end()

    serve([Endpoint(page.app, [listener])], limits=settings.http, drain=end, drain_s=_DRAIN_S)
    return 0
