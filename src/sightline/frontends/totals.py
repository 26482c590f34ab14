"""The counts of all processes of a server, added up: what `/metrics` tells, whichever front end is asked.

Each process counts for itself. A front end's counts reach the core when somebody asks for them, and every second: what
one that is killed had counted since is lost, and what it had told stays in the sums, so that no counter ever falls.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from sightline.frontends.frames import Family, Sample

_GAUGES = frozenset({"gauge", "unknown", "info", "stateset"})


def to_families(registry: CollectorRegistry) -> tuple[Family, ...]:
    """What a process has counted."""
    return tuple(
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            tuple(Sample(s.name, tuple(sorted(s.labels.items())), s.value) for s in metric.samples),
        )
        for metric in registry.collect()
    )


class Totals:
    """Used from one event loop."""

    def __init__(self) -> None:
        self._last: dict[Hashable, tuple[Family, ...]] = {}
        self._gone: dict[str, Family] = {}
        """Of processes that are no more: what only ever grows."""

    def put(self, process: Hashable, families: tuple[Family, ...]) -> None:
        """What it has counted since it started."""
        self._last[process] = families

    def retire(self, process: Hashable) -> None:
        """It counts no more."""
        families = [family for family in self._last.pop(process, ()) if family.kind not in _GAUGES]
        self._gone = _added([self._gone.values(), families])

    def all(self, own: Iterable[Family]) -> tuple[Family, ...]:
        """`own`: the core's. Gauges are sums over the processes that live, but for those of which there is one."""
        return tuple(_added([own, self._gone.values(), *self._last.values()]).values())


class Told:
    """Counts that came from elsewhere, as `prometheus_client` writes them."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.meaning, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, dict(sample.labels), sample.value)
            yield metric


def _added(processes: Iterable[Iterable[Family]]) -> dict[str, Family]:
    """By name, in the order in which they first come."""
    families: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for process in processes:
        for family in process:
            families.setdefault(family.name, family)
            sums = values.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, sample.labels
                sums[key] = _add(sample.name, sums[key], sample.value) if key in sums else sample.value
    return {
        name: Family(
            name, family.kind, family.meaning, tuple(Sample(*key, value) for key, value in values[name].items())
        )
        for name, family in families.items()
    }


def _add(name: str, one: float, other: float) -> float:
    if name.endswith("_start_time_seconds"):
        return min(one, other)  # of the server
    if name.startswith("sightline_jobs_") or name.endswith(("_info", "_max_fds")):
        return max(one, other)  # of what every process sees alike: a queue in a database, what the program is
    return one + other
