"""Whether an installed wheel is whole: run by `make package` with the Python of an environment that has nothing else.

    python tests/package_check.py DIRECTORY_OF_PICTURES

Asks the embedded model by the installed command, and a server that the command starts. Standard library only.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

SIGHTLINE = Path(sys.executable).with_name("sightline")
QUESTIONS = (("red-circle.png", "What colour is the circle?", "red"), ("yellow-star.png", "What shape is it?", "star"))


def ask(picture: Path, question: str) -> str:
    done = subprocess.run(
        [SIGHTLINE, "ask", picture, question], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def post(url: str, picture: Path, question: str) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    body = {"prompt": question, "image_base64": data}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/analyze", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        return str(json.load(reply)["result"])


def main() -> int:
    pictures = Path(sys.argv[1])
    answers = [(ask(pictures / name, question), right) for name, question, right in QUESTIONS]
    server = subprocess.Popen([SIGHTLINE, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://[0-9.:]+", server.stdout.readline())
        assert found is not None, "the server did not say where it listens"
        answers += [(post(found[0], pictures / name, question), right) for name, question, right in QUESTIONS]
    finally:
        server.terminate()
        server.wait(60)
    for answer, right in answers:
        print(f"answered {answer!r}, right is {right!r}")
    return int(any(answer != right for answer, right in answers))


if __name__ == "__main__":
    raise SystemExit(main())
