"""Which model answered, when the first could not.

sightline serve examples/fallback.yaml
python examples/fallback.py
"""

import base64
import os
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("SIGHTLINE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
data = base64.b64encode((Path(__file__).parent / "pictures" / "red-circle.png").read_bytes()).decode()
reply = client.chat.completions.create(
    model="assistant",
    temperature=0,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": "What colour is the circle?"},
            ],
        }
    ],
)
print(reply.choices[0].message.content)
print("tried:", ", then ".join(reply.model_extra["sightline"]["path"]))
