"""The OpenAI SDK and a picture by its URL, which the server fetches. Off until you say whose pictures it may fetch:

sightline serve --fetch cdn.example.com
python examples/picture_url.py https://cdn.example.com/red-circle.png "What colour is the circle?"
"""

import os
import sys

from openai import BadRequestError, OpenAI

if len(sys.argv) != 3:
    sys.exit(__doc__)
_, url, question = sys.argv

client = OpenAI(base_url=os.environ.get("SIGHTLINE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
try:
    reply = client.chat.completions.create(
        model="peek",
        temperature=0,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
                    {"type": "text", "text": question},
                ],
            }
        ],
    )
except BadRequestError as error:  # a host that is not allowed, a picture that is none: the message says which
    sys.exit(f"{error.code}: {error.body['message']}")  # type: ignore[index]
print(reply.choices[0].message.content)
