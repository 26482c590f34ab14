"""A real Ray of several nodes on this machine, an application of ours on it, and a client."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import httpx
import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster as RayCluster

from sightline.cluster import app

NAME = "sightline"
STARTS = 4


class Cluster:
    """Life: made -> `with` it. One at a time in a process, and on a machine's network."""

    def __init__(self, nodes: int = 1, *, cpus: int = 4) -> None:
        self._cpus = cpus
        self._cluster = RayCluster()
        self.port = free_port()
        """Of the proxy on the node that is never killed."""
        self._head = self._add(include_dashboard=False, resources={"head": 9, "edge": 9})
        self.nodes: list[Node] = []
        self._lost: list[bool] = []
        """Of the nodes that were killed: whether an ingress might be there."""
        for place in range(nodes - 1):
            self._add_node(edge=place == 0)
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Self:
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": self.port})
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()

    def deploy(self, args: dict[str, Any]) -> None:
        """In place of what was deployed before. Returns when it serves."""
        serve.run(app(args), name=NAME, route_prefix="/")

    def is_whole(self) -> bool:
        """Whether every deployment has all its replicas."""
        application = serve.status().applications[NAME]
        return application.status == "RUNNING" and all(
            deployment.status == "HEALTHY" for deployment in application.deployments.values()
        )

    def replicas(self, deployment: str) -> int:
        """That run."""
        found = serve.status().applications[NAME].deployments[deployment].replica_states
        return int(found.get("RUNNING", 0))

    def kill_node(self, *, edge: bool) -> None:
        """All its processes at once, of one that may have an ingress, or of one that has none."""
        node = next(node for node in self.nodes if node.edge == edge)
        self.nodes.remove(node)
        self._lost.append(edge)
        self._cluster.remove_node(node.ray, allow_graceful=False)

    def mend(self) -> None:
        """A new node for each that was killed. Ray wants the main thread."""
        while self._lost:
            self._add_node(edge=self._lost.pop())

    def _add_node(self, *, edge: bool) -> None:
        """Its proxy has ports of its own: all nodes have the address of this machine."""
        ports = [free_port() for _ in range(3)]
        names = ("WORKER_PROXY_HTTP_PORT", "HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT")
        variables = {f"RAY_SERVE_{name}": str(port) for name, port in zip(names, ports, strict=True)}
        resources = {"work": 9, **({"edge": 9} if edge else {})}
        self.nodes.append(Node(self._add(resources=resources, env_vars=variables), ports[0], edge))

    def _add(self, **options: Any) -> Any:
        return add_node(self._cluster, num_cpus=self._cpus, **options)


@dataclass(frozen=True)
class Node:
    """Beside the head."""

    ray: Any
    port: int
    """Of its proxy."""
    edge: bool
    """Whether an ingress may be there."""


def add_node(cluster: RayCluster, **options: Any) -> Any:
    """Ray gives up on a node whose agents have not come up within 15 s, which on a busy machine they have not."""
    for _ in range(STARTS - 1):
        with suppress(Exception):
            return cluster.add_node(**options)
    return cluster.add_node(**options)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def processes(deployment: str) -> list[psutil.Process]:
    """Of a deployment's replicas, but for those that are to end. Ray writes what they do behind their names."""
    title = f"ray::ServeReplica:{NAME}:{deployment}"
    titles = {process: _title(process) for process in psutil.process_iter()}
    return [p for p, words in titles.items() if words.startswith(title) and "graceful_shutdown" not in words]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
