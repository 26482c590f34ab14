"""`python -m sightline.bench.cluster`: a cluster on this machine, one figure after the other, then the report."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from sightline.bench.cluster import measure, report
from sightline.bench.cluster.measure import GROWING, ONE_SLOT, PREFILL_S, QUICK, SLOTS, STEP_S, Measured
from sightline.bench.cluster.system import MODEL, Cluster, Single, prepare, wait_for

ASLEEP = "asleep"
_SCALES = {"upscale_delay_s": 0.5, "metrics_interval_s": 0.5, "look_back_period_s": 1.0, "downscale_delay_s": 600.0}
"""Ray's own defaults wait 30 s before they start a replica."""


def models() -> list[dict[str, Any]]:
    paced = {"slots": SLOTS, "step_s": STEP_S, "prefill_s_per_token": PREFILL_S}
    return [
        {"name": name, "engine": "fake", "max_concurrent": slots, "options": dict(options)}
        for name, slots, options in (
            (MODEL, SLOTS, paced), (QUICK, SLOTS, {}), (GROWING, SLOTS, paced), (ASLEEP, SLOTS, {}), (ONE_SLOT, 1, {}),
        )
    ]  # fmt: skip


def deployments(replicas: int) -> dict[str, dict[str, Any]]:
    return {
        MODEL: {"num_replicas": replicas},
        GROWING: {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2, **_SCALES}},
        ASLEEP: {"autoscaling_config": {"min_replicas": 0, "max_replicas": 1, **_SCALES}},
    }


def main(args: argparse.Namespace) -> None:
    prepare()
    began = time.monotonic()
    measured = Measured(len(os.sched_getaffinity(0)), os.getloadavg()[0])

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)

    say("Ray is started")
    with Cluster() as cluster:
        for replicas in args.replicas:
            cluster.deploy(models(), deployments(replicas))
            wait_for(cluster.port)
            if measured.way is None:
                measured.way = measure.way(cluster)
                say(report.way_line(measured.way))
            say(f"{replicas} replicas are asked")
            points = []
            for _ in range(args.tries):
                points.append(measure.point(cluster, replicas, args.requests))
                say(report.point_line(points[-1]))
                if measured.points and report.of_linear(points[-1], [*measured.points, points[-1]]) >= report.LINEAR:
                    break
            measured.points.append(max(points, key=lambda each: each.tokens_per_s))
        cluster.deploy(models(), deployments(2))
        wait_for(cluster.port)
        say("a server of its own is started, for comparison")
        with Single(models()[:2]) as single:
            measured.latency = measure.latency(cluster, single, args.latencies)
            say(report.latency_line(measured.latency))
            measured.delay = measure.delay(single, args.requests)
            say(report.delay_line(measured.delay))
        measured.scaling = measure.scaling(cluster, ASLEEP)
        say(report.scaling_line(measured.scaling))
        for _ in range(args.kills):
            measured.failovers.append(measure.failover(cluster))
            say(report.failover_line(measured.failovers[-1]))
        say("Ray is ended")
    measured.load_after = os.getloadavg()[0]
    print(report.to_text(measured))
    if args.out is not None:
        report.write(measured, args.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--requests", type=int, default=6, help="of each client, for each number of replicas")
    parser.add_argument("--tries", type=int, default=3, help="other work slows a machine down: the best one counts")
    parser.add_argument("--latencies", type=int, default=300, help="requests to each of both servers")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--out", type=Path, help="PREFIX: PREFIX.json, PREFIX.png and PREFIX.md are written")
    main(parser.parse_args())
