"""What the gateway counts and what engines say about themselves, for Prometheus."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.registry import Collector

from ensemble.vitals import Vitals
from serve.admission import Admission

ENGINE = {
    "requests": "prompts answered",
    "prompt_tokens": "tokens of prompts, cached ones too",
    "cached_tokens": "tokens of prompts that the prefix cache had",
    "output_tokens": "tokens generated for votes",
    "errors": "calls that failed",
    "busy": "seconds with work under way",
    "running": "requests in the scheduler's batch",
    "waiting": "requests that wait for the scheduler",
    "kv_usage": "share of the KV cache in use, 0 to 1",
}

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Of one gateway process."""

    def __init__(self, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "quorum_requests_total", "requests by route and status", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "quorum_request_seconds", "until a response begins", ("route",), buckets=SECONDS, registry=self._registry
        )
        in_flight = Gauge("quorum_in_flight", "questions and prompts under way", registry=self._registry)
        in_flight.set_function(lambda: admission.in_flight)

    def answered(self, route: Any, status: int, seconds: float) -> None:
        """route: as declared, None where there is none: no caller makes up names."""
        path = getattr(route, "path", "other")
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def counts(self) -> list[Metric]:
        """Plain data under this process's pid: one that is started again counts from zero, under another."""
        pid, found = {"pid": str(os.getpid())}, list(self._registry.collect())
        for metric in found:
            metric.samples = [sample._replace(labels=sample.labels | pid) for sample in metric.samples]
        return found


def exposition(gateways: Sequence[Sequence[Metric]], engines: Iterable[Vitals]) -> bytes:
    """The text that Prometheus reads: what each gateway has counted, and each engine's vitals."""
    registry = CollectorRegistry()
    registry.register(_Together(gateways))
    return generate_latest(registry) + generate_latest(_of_engines(engines))


class _Together(Collector):
    def __init__(self, gateways: Sequence[Sequence[Metric]]) -> None:
        self._gateways = gateways

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for metric in (metric for counts in self._gateways for metric in counts):
            same = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            same.samples = [*same.samples, *metric.samples]
        return families.values()


def _of_engines(engines: Iterable[Vitals]) -> CollectorRegistry:
    """As they are at this moment; a process that is started again counts from zero under its own pid."""
    registry, found = CollectorRegistry(), list(engines)
    for key, told in ENGINE.items():
        gauge = Gauge(f"quorum_engine_{key}", told, ("model", "node", "pid"), registry=registry)
        for vitals in found:
            if (value := getattr(vitals, key)) is not None:
                gauge.labels(vitals.model, vitals.node, str(vitals.pid)).set(value)
    return registry
