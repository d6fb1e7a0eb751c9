"""Ray's metrics of an engine, as Prometheus finds them."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ensemble.config import ROOT
from tests.lives import at_work


@pytest.fixture(scope="module")
def metrics() -> Iterator[str]:
    """What a node's endpoint says of an actor's engine, without Ray's dashboard."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local", include_dashboard=False, num_cpus=1, object_store_memory=2**27, log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, _system_config={"metrics_report_interval_ms": 200},
        )  # fmt: skip
        try:
            engine = ray.remote(Counted).remote()
            ray.get(engine.work.remote())
            yield scraped(ray.nodes()[0])
        finally:
            ray.shutdown()


class Counted:
    def work(self) -> None:
        from pipelines.metrics import Exporter

        exporter = Exporter("smollm2", 3)
        done = {"requests": 24, "prompt_tokens": 900, "cached_tokens": 700, "output_tokens": 25, "running": 5}
        exporter.update(at_work(20, 0))
        exporter.update(at_work(21, 0, **done | {"requests": 20, "busy": 1.5}))
        exporter.update(at_work(22, 0, **done | {"busy": 2.5, "waiting": 2, "kv_usage": 0.5, "memory_gib": 21.5}))


def scraped(node: dict[str, Any]) -> str:
    import urllib.request

    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text, patience = "", time.monotonic() + 60
    while "quorum_engine_memory_gib" not in text and time.monotonic() < patience:
        time.sleep(0.2)
        try:
            text = urllib.request.urlopen(url, timeout=5).read().decode()
        except OSError:  # the node's agent is still starting
            continue
    return text


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("requests_total", 24), ("prompt_tokens_total", 900), ("cached_tokens_total", 700), ("output_tokens_total", 25),
        ("busy_seconds_total", 2.5), ("running", 5), ("waiting", 2), ("kv_cache_usage", 0.5), ("memory_gib", 21.5),
    ],
)  # fmt: skip
def test_prometheus_finds_an_engine_on_its_nodes_endpoint(metrics: str, metric: str, value: float):
    lines = re.findall(rf"^ray_quorum_engine_{metric}{{(.*)}} (\S+)$", metrics, re.MULTILINE)
    assert [float(found) for _, found in lines] == [value]
    assert 'model="smollm2"' in lines[0][0]
    assert 'replica="3"' in lines[0][0]
