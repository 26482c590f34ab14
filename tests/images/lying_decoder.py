"""A decoder process as a hostile file might leave it: answers what the file on the desk names."""

from __future__ import annotations

import socket
import sys
from typing import Any

import msgspec

from sightline.images.codec import Inspected, Picture
from sightline.images.decoder_process import REQUESTS, Ready, Refused, lay, opened, receive, send


def picture(width: int, height: int, served_width: int, served_height: int, media_type: Any = "image/png") -> Picture:
    return Picture(media_type, width, height, served_width, served_height, 0.1, 0.1)


TRUTH = picture(2, 2, 2, 2)
LIES: dict[bytes, Any] = {
    b"too large": picture(2, 2, 100_000, 100_000),
    b"nothing": picture(0, 0, 0, 0),
    b"no pixels": picture(3, 3, 3, 3),
    b"type": picture(2, 2, 2, 2, "text/html\r\n"),
    b"error": Refused("KeyboardInterrupt", "x"),
    b"greeting": Ready(),
    b"inspected": Inspected("image/png", 0, 7),
    b"length": None,
}


def main() -> None:
    desk = int(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rwb") as stream:
        send(stream, Ready())
        while receive(stream, REQUESTS) is not None:
            with opened(desk) as file:
                wanted = file.read()
            lay(desk, bytes(12))
            if wanted == b"length":
                stream.write(b"\xff\xff\xff\xff" + b"x" * 100_000)
                stream.flush()
            else:
                frame = msgspec.msgpack.encode(LIES.get(wanted, TRUTH))
                stream.write(len(frame).to_bytes(4, "little") + frame)
                stream.flush()


if __name__ == "__main__":
    main()
