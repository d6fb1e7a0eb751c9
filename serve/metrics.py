"""What the gateway counts, for Prometheus. Engines publish their own through Ray's metrics."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.admission import Admission

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

    def text(self) -> bytes:
        return generate_latest(self._registry)
