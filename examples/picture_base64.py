"""The OpenAI SDK and a picture as a data URI: works with any picture file, as it came from the phone.

sightline serve
python examples/picture_base64.py [PICTURE] [QUESTION]
"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

picture = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures" / "red-circle.png"
question = sys.argv[2] if len(sys.argv) > 2 else "What colour is the circle?"

client = OpenAI(base_url=os.environ.get("SIGHTLINE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
data = base64.b64encode(picture.read_bytes()).decode()
reply = client.chat.completions.create(
    model="peek",
    temperature=0,
    messages=[
        {
            "role": "user",
            "content": [
                # The server goes by the file's first bytes, not by the media type that is declared here.
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": question},
            ],
        }
    ],
)
print(reply.choices[0].message.content)
