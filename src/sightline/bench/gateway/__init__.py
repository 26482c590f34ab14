"""What a server in front of a model costs: Sightline, LiteLLM, a plain proxy, and the bare model. `make bench-gateway`.

    __main__.py     the run: every gateway, every case, one after the other; the report
    cases.py        the bodies that are sent, and how many clients send them
    stub.py         the model: answers at once, or a token every so often. Nearly free
    load.py         the clients
    gateways.py     how each gateway is started
        peer_plain.py    FastAPI + httpx, run by a Python of its own
        peer_litellm.py  LiteLLM's SDK behind FastAPI, likewise
    processes.py    cores and CPU time, from /proc
    report.py       the table, the goals, JSON, the plot

A gateway has one core to itself; the stub and the clients share another. What counts is the CPU time that a request
takes of the gateway's processes: other work on the machine changes it far less than it changes a rate.
"""
