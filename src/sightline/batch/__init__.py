"""One question about many pictures: read, asked a bounded number at a time, answered in the order of the input.

    async with Batch("What is this?", model="peek") as batch:
        async for row in batch.run(["a.jpg", "b.jpg"]):
            print(row.id, row.answer or row.error)

tasks.py        paths, folders, globs, CSV and JSONL to tasks
ask.py          one task asked: of a model in this process, or of a server
batch.py        many tasks: how many at once, what is tried again, in which order they come out
ray_data.py     the same on the machines of a Ray cluster
results.py      rows to a file, from which a run that was cut off goes on; JSONL, CSV, Parquet
"""

from sightline.batch.batch import Batch
from sightline.batch.tasks import Row, RowError, Task

__all__ = ["Batch", "Row", "RowError", "Task"]
