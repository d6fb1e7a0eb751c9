"""What an engine does, as Ray metrics: each node's metrics endpoint has them for Prometheus, with Ray's own.

Ray publishes them as `ray_quorum_engine_...`, every ten seconds, at the node's `MetricsExportPort` (`ray.nodes()`).
"""

from ray.util.metrics import Counter, Gauge

from ensemble.vitals import Vitals

# Metric: field of the vitals, description.
COUNTERS = {
    "requests": ("requests", "prompts answered"),
    "prompt_tokens": ("prompt_tokens", "tokens of prompts, cached ones too"),
    "cached_tokens": ("cached_tokens", "tokens of prompts that the prefix cache had"),
    "output_tokens": ("output_tokens", "tokens generated"),
    "errors": ("errors", "calls that failed"),
    "busy_seconds": ("busy", "seconds with work under way"),
}
GAUGES = {
    "running": ("running", "requests in the scheduler's batch"),
    "waiting": ("waiting", "requests that wait for the scheduler"),
    "kv_cache_usage": ("kv_usage", "share of the KV cache in use, 0 to 1"),
    "memory_gib": ("memory_gib", "memory in use on the engine's GPUs"),
}
TAGS = ("model", "replica")


class Exporter:
    """The metrics of one engine. Make and use it in the engine's process."""

    def __init__(self, model: str, replica: int) -> None:
        self._tags = {"model": model, "replica": str(replica)}
        self._counters = {
            name: Counter(f"quorum_engine_{name}_total", text, TAGS) for name, (_, text) in COUNTERS.items()
        }
        self._gauges = {name: Gauge(f"quorum_engine_{name}", text, TAGS) for name, (_, text) in GAUGES.items()}
        self._told = dict.fromkeys(COUNTERS, 0.0)

    def update(self, vitals: Vitals) -> None:
        """Takes over the counts, which only grow, and the values of this moment."""
        for name, (key, _) in COUNTERS.items():
            count = getattr(vitals, key)
            if count > self._told[name]:  # Ray refuses to add nothing
                self._counters[name].inc(count - self._told[name], self._tags)
                self._told[name] = count
        for name, (key, _) in GAUGES.items():
            value = getattr(vitals, key)
            if value is not None:
                self._gauges[name].set(value, self._tags)
