"""A real Ray of several nodes on this machine, an application of ours on it, and a client."""

from __future__ import annotations

import socket
from typing import Any, Self

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster as RayCluster

from sightline.cluster import app

NAME = "sightline"


class Cluster:
    """Life: made -> `with` it. One at a time in a process."""

    def __init__(self, nodes: int = 1, *, cpus: int = 4) -> None:
        self.port = free_port()
        self._cluster = RayCluster(
            initialize_head=True,
            head_node_args={"num_cpus": cpus, "include_dashboard": False, "resources": {"head": 9}},
        )
        self.nodes = [self._cluster.add_node(num_cpus=cpus, resources={"work": 9}) for _ in range(nodes - 1)]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Self:
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        # One proxy, on the node that is not killed: who is connected to a proxy that is gone must connect again.
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()

    def deploy(self, args: dict[str, Any]) -> None:
        """Returns when it serves."""
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

    def kill_node(self, index: int) -> None:
        """All its processes, at once."""
        self._cluster.remove_node(self.nodes.pop(index), allow_graceful=False)

    def add_node(self, *, cpus: int = 4) -> None:
        self.nodes.append(self._cluster.add_node(num_cpus=cpus, resources={"work": 9}))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
