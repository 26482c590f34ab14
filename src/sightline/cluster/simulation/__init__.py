"""Clusters of 10 to 1,000 replicas, simulated: what the choice of a replica is worth. `python -m` it; knows no Ray.

    traffic.py    people who ask about pictures, drawn from a seed; every assumption with its source
    replica.py    one replica: the fake engine's steps, and what its caches keep
    policy.py     who is asked: at random, the least loaded, or as `cluster/affinity.py` decides
    run.py        discrete events; what came of them
    measured.py   the same as measured on engines or clusters; a program
    __main__.py   the table, the plot and the page in the docs

A replica's steps are those of `engines/fake`, and a test runs both on the same requests: they end at the same moments.
"""

from sightline.cluster.simulation.policy import POLICIES
from sightline.cluster.simulation.replica import Pace
from sightline.cluster.simulation.run import Outcome, simulate
from sightline.cluster.simulation.traffic import Traffic, Turn, draw

__all__ = ["POLICIES", "Outcome", "Pace", "Traffic", "Turn", "draw", "simulate"]
