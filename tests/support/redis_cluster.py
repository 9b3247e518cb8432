"""A real Redis Cluster of three masters on loopback ports."""

from __future__ import annotations

from pathlib import Path

from paceline.processes import free_port
from redis_server import RedisServer
from waiting import wait_until

NUM_SLOTS = 16_384


class RedisCluster:
    """Three redis-servers that share the slots; each keeps its data in a folder of its own."""

    def __init__(self, folder: Path, *, num_nodes: int = 3) -> None:
        self.nodes: list[RedisServer] = []
        self._bus_ports = [free_port() for _ in range(num_nodes)]
        for number, bus_port in enumerate(self._bus_ports):
            home = folder / f"node-{number}"
            home.mkdir(parents=True)
            self.nodes.append(
                RedisServer(
                    home,
                    *("--cluster-enabled", "yes", "--cluster-port", str(bus_port)),
                    *("--cluster-node-timeout", "2000"),
                )
            )

    @property
    def url(self) -> str:
        """A node of the cluster, as a plain URL."""
        return self.nodes[0].url

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        share = -(-NUM_SLOTS // len(self.nodes))
        for number, node in enumerate(self.nodes):
            first, last = number * share, min((number + 1) * share, NUM_SLOTS) - 1
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.execute_command(
                    "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self._bus_ports[0]
                )
        for node in self.nodes:
            with node.client() as client:
                wait_until(lambda c=client: self._knows_all(c.execute_command("CLUSTER", "INFO")))

    def _knows_all(self, answer: object) -> bool:
        if isinstance(answer, bytes):
            lines = dict(line.split(":") for line in answer.decode().split())
        else:
            assert isinstance(answer, dict)
            lines = {str(name): str(value) for name, value in answer.items()}
        return lines["cluster_state"] == "ok" and lines["cluster_known_nodes"] == str(
            len(self.nodes)
        )

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()
