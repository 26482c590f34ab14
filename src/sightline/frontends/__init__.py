"""`--workers N`: several processes answer HTTP, and share everything.

    supervisor.py        the parent: holds the listening sockets, keeps the others alive, replaces front ends in turn
    processes.py         one of them, as the parent sees it
    __main__.py          one of them, as it begins
    front_process.py     a front end: the same application, server and dialects as in a server of one process
    service.py           what its dialects ask in place of `Service`
    core_process.py      the core: `Service`, and nothing that a client can reach
    core.py              what front ends ask of it
    frames.py            what they say to each other
    requests.py          how requests look there
    orders.py            what the parent says to them
    link.py              how that gets from one to the other
    calls.py             objects of the core that front ends call: limits, stored responses
    forward.py           whole requests that only the core can answer
    totals.py            counts of all processes, added up
    shares.py            how limits are divided

One request: a front end reads HTTP and JSON; the core admits it, chooses the engine and asks the front end
for the pictures at the size that this engine takes; the front end fetches and decodes them and gives the pixels in
shared memory; events go back as they come, as many as the client takes. So what is decided once for the server
(admission, fallbacks, breakers, quarantine, budgets) is decided in one place, by the same `Service` as without workers,
and what costs time for each request (TLS, JSON, base64, pictures, event streams) is done in as many processes as one
likes.
"""

from sightline.frontends.supervisor import Supervisor

__all__ = ["Supervisor"]
