"""The first minute with Sightline: `make demo`.

Starts the server on the embedded model, asks about pictures with the official OpenAI SDK, shows the pictures, the
questions and the answers, then serves until Ctrl-C. With --once it ends after the answers; the exit status tells
whether all of them were right.
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI
from PIL import Image

from sightline.cli.terminal import side_by_side, to_blocks

PICTURES = Path(__file__).parent / "pictures"
READY_WITHIN_S = 60


@dataclass(frozen=True)
class Question:
    pictures: tuple[str, ...]
    text: str
    answer: str
    stream: bool


QUESTIONS = (
    Question(("red-circle.png",), "What colour is the circle?", "red", stream=True),
    Question(("three-triangles.png",), "How many triangles are there?", "3", stream=True),
    Question(
        ("blue-square.jpg", "yellow-star.png"),
        "What colour is the shape in the second picture?",
        "yellow",
        stream=False,
    ),
)


def data_uri(path: Path) -> str:
    media_type = mimetypes.guess_type(path.name)[0]
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def ask(client: OpenAI, question: Question) -> str:
    """Asks as any program would; a streamed answer is printed as it arrives."""
    images = [{"type": "image_url", "image_url": {"url": data_uri(PICTURES / p)}} for p in question.pictures]
    reply = client.chat.completions.create(
        model="peek",
        messages=[{"role": "user", "content": [*images, {"type": "text", "text": question.text}]}],  # type: ignore[list-item]
        temperature=0,
        max_tokens=32,
        stream=question.stream,
    )
    if not question.stream:
        answer = reply.choices[0].message.content or ""
        print(answer, flush=True)
        return answer
    answer = ""
    for chunk in reply:
        text = chunk.choices[0].delta.content or "" if chunk.choices else ""
        print(text, end="", flush=True)
        answer += text
    print()
    return answer


def wait_until_ready(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"The server ended with status {server.returncode} before it was ready.")
        try:
            with urllib.request.urlopen(f"{address}/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    sys.exit(f"The server was not ready within {READY_WITHIN_S} s.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the answers")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    address = f"http://127.0.0.1:{args.port}"

    began = time.monotonic()
    command = [sys.executable, "-m", "sightline.cli", "serve", "--port", str(args.port), "--log-level", "warning"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(address, server)
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        wrong = 0
        for question in QUESTIONS:
            print()
            if sys.stdout.isatty():
                print("\n".join(side_by_side([to_blocks(Image.open(PICTURES / p)) for p in question.pictures])))
            else:
                print(f"  {', '.join(question.pictures)}")
            print(f"  {question.text}  ", end="", flush=True)
            answer = ask(client, question)
            if answer.strip().rstrip(".").lower() != question.answer:
                wrong += 1
                print(f"  (wrong: it is {question.answer})")
        print(f"\n{len(QUESTIONS) - wrong} of {len(QUESTIONS)} right, {time.monotonic() - began:.1f} s from start.")
        if args.once:
            return 1 if wrong else 0
        print(f"\nServing peek on {address}/v1. Ctrl-C ends it. Try:")
        print(f'  {Path(sys.executable).parent}/sightline ask examples/pictures/yellow-star.png "What shape is it?"')
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait(timeout=35)


if __name__ == "__main__":
    sys.exit(main())
