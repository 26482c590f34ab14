"""Who may ask for what, and for how much of it. Knows no HTTP.

    keys.py      a key, and how one is found by what a client sends
    keyfile.py   where keys and what they have used are kept
    limits.py    rates and budgets: pure decisions
    metering.py  these decisions, asked for by many, and kept across restarts
    permit.py    what one request may do, from its first byte to its last
    gate.py      all of it put together

A request's way: `Gate.identify` (is this a key?) -> `Gate.admit` (a `Permit`: its rate of requests, its place among
those at once) -> the service asks `permit.current()` which models it may use and spends its tokens there -> the permit
is left, and what was reserved and not used is given back.
"""
