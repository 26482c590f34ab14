"""An engine in a supervised child process: what breaks there breaks nothing here.

    WorkerEngine (engine.py)        the `Engine` that everything above uses; keeps one child alive
        RestartPolicy (restarts.py) when to start it again; pure
        Child (child.py)            one process and what is under way in it
            frames.py               the messages between the two, and their bytes
            pictures.py             pixels, by shared memory
            environment.py          what of our environment it may see; pure
            output.py               what it prints, for the log
    __main__.py                     the other side: runs the engine, in the child

Two private socket pairs join them, and whoever dies, the other reads end-of-file at once. Requests go down one, written
by a thread, because writing pixels must not hold up the event loop, and read by a thread, so that the child notices its
parent's death and a cancellation while its engine computes. Events come up the other, all those of one turn of the
child's event loop in one write.

Frames are msgpack behind a length; nothing is ever unpickled. Pixels lie in an anonymous file whose descriptor rides
beside its frame: the kernel frees it when the last of the two lets go, so nothing can leak.

How much of a stream waits here is bounded: the child sends `frames.WINDOW` events and then only as many as the consumer
has taken. What a slow consumer leaves is held by the engine, which can make no more than its context holds.

Unix only: descriptors cannot be passed this way on Windows.
"""

from sightline.engines.worker.engine import WorkerEngine

__all__ = ["WorkerEngine"]
