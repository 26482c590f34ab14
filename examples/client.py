"""The client of Sightline: pictures as you have them, answers as text.

sightline serve
python examples/client.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from sightline import Client

PICTURES = Path(__file__).parent / "pictures"

with Client() as client:
    answer = client.ask("What colour is the circle?", PICTURES / "red-circle.png", temperature=0)
    print("a path:", answer)

    seen = answer.pictures[0]
    print(f"{seen.width} x {seen.height} pixels were seen as {seen.served_width} x {seen.served_height}")

    # The picture goes along, and was understood already: this time it costs next to nothing.
    follow_up = client.ask("What shape is it?", after=answer, temperature=0)
    print("a follow-up:", follow_up)

    with Image.open(PICTURES / "yellow-star.png") as picture:
        print("a PIL picture:", client.ask("What colour is the star?", picture, temperature=0))

    pixels = np.full((200, 200, 3), 255, np.uint8)
    pixels[60:140, 60:140] = (0, 0, 255)
    print("a numpy array:", client.ask("What colour is the square?", pixels, temperature=0))

    print("streamed: ", end="")
    for piece in client.stream("Describe the picture.", PICTURES / "blue-square.jpg", temperature=0):
        print(piece, end="", flush=True)
    print()
