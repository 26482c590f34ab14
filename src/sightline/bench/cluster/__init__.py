"""What Ray between a server and its models costs: `make bench-cluster`. One machine, the paced fake engine.

__main__.py   one figure after the other
system.py     a Ray of one machine with our application, and `sightline serve` beside it
load.py       clients, who learn of every word when it was made and by which process
measure.py    each figure: throughput by replicas, latency, how late words are, scaling, failover
processes.py  who took the processors
report.py     lines, tables, JSON and the plot
"""
