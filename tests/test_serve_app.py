"""What the endpoint asks of Ray."""

import os
from typing import Any

import pytest

from serve.app import build


@pytest.mark.parametrize(("engines", "gateways"), [(1, 1), (4, 1), (1, 4), (8, 8)])
def test_engines_on_two_cores_leave_room_for_gateways(monkeypatch, engines, gateways):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    replicas = {"smollm2_gptq": {"min": engines, "max": engines}}
    app: Any = build({"config": "configs/demo.yaml", "replicas": replicas, "gateways": gateways})
    gateway = app._bound_deployment
    (engine,) = (handle._bound_deployment for handle in gateway.init_args[3].values())
    assert (engine.num_replicas, gateway.num_replicas) == (engines, gateways)
    shares = [d.ray_actor_options["num_cpus"] for d in (engine, gateway)]
    assert min(shares) > 0
    assert engines * shares[0] + gateways * shares[1] <= 2
