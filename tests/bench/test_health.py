"""The load of the health benchmark is what it says: photographs, no two alike."""

from __future__ import annotations

import base64
import io
import json

from PIL import Image

from sightline.bench.health import body_of


def test_every_body_is_a_request_with_a_picture_of_its_own() -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "JPEG")
    head, tail = body_of(file.getvalue().ljust(3000, b"\0"))
    seen = set()
    for number in range(2):
        body = json.loads(head + f"{number:016d}".encode() + tail)
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        content = base64.b64decode(url.partition(",")[2], validate=True)
        assert Image.open(io.BytesIO(content)).size == (40, 30)
        seen.add(content)
    assert len(seen) == 2
