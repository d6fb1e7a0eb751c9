"""What the endpoint asks of Ray."""

from typing import Any

import pytest
import ray

from serve.app import build


@pytest.mark.parametrize(("engines", "gateways"), [(1, 1), (4, 1), (1, 4), (8, 8)])
def test_engines_on_two_cores_leave_room_for_gateways(monkeypatch, engines, gateways):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    on_cpu = ["models.smollm2_gptq.engine.device=cpu"]
    replicas = {"smollm2_gptq": {"min": engines, "max": engines}}
    app: Any = build({"config": "configs/demo.yaml", "set": on_cpu, "replicas": replicas, "gateways": gateways})
    gateway = app._bound_deployment
    (engine,) = (handle._bound_deployment for handle in gateway.init_args[3].values())
    assert (engine.num_replicas, gateway.num_replicas) == (engines, gateways)
    shares = [d.ray_actor_options["num_cpus"] for d in (engine, gateway)]
    assert min(shares) > 0
    assert engines * shares[0] + gateways * shares[1] <= 2
