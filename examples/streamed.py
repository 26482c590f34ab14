"""The OpenAI SDK and an answer as it comes, with what became of the picture at its end.

sightline serve
python examples/streamed.py
"""

import base64
import os
import time
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("SIGHTLINE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
data = base64.b64encode((Path(__file__).parent / "pictures" / "yellow-star.png").read_bytes()).decode()
began = time.perf_counter()
first_s = None
with client.chat.completions.create(
    model="peek",
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": "Describe the picture."},
            ],
        }
    ],
) as stream:
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first_s = first_s or time.perf_counter() - began
            print(chunk.choices[0].delta.content, end="", flush=True)
        if chunk.usage:
            seen = chunk.model_extra["sightline"]["images"][0]
            print(f"\nthe picture: {seen['tokens']} tokens of {chunk.usage.prompt_tokens} in the prompt")
            print(f"first word after {first_s:.3f} s")
