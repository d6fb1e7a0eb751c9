"""The Ray Serve application: a gateway that takes requests, and a deployment of engines for each model.

serve run serve.app:build config=configs/demo.yaml
python -m serve --config configs/demo.yaml
"""

import asyncio
import hashlib
import os
import time
from math import inf
from pathlib import Path
from typing import Any

import ray
from prometheus_client import Metric
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException

from ensemble.config import RunConfig
from ensemble.errors import ConfigError
from ensemble.load import load_config
from ensemble.names import unknown
from ensemble.placement import cpu_share
from ensemble.plan import Plan
from serve.api import create_api
from serve.desk import Desk
from serve.engines import EngineReplica
from serve.gateway import ENSEMBLE, Gateway, served_plan
from serve.keys import Keys
from serve.listener import Listener
from serve.remote import Remote
from serve.settings import Replicas, Settings, read_settings

GATEWAY = "gateway"  # the deployment
ROUTER = "serve.router.SessionRouter"
LOOK_SECONDS = 1.0  # between two looks at which models have engines
HEALTH_SECONDS = 2.0  # between two looks at an engine: how soon a dead one is started again
COUNTS_SECONDS = 2.0  # for the other gateways to say what they have counted
START_SECONDS = 30.0  # a look may take so long: an engine is busy in its own loop now and then
CALLS = 4096  # that wait at one engine at most; the gateway's limits are smaller


class Ingress:
    """The deployment around a Desk."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: dict[str, Any], config: RunConfig, cwd: str, handles: dict[str, Any]
    ) -> None:
        """config: as it was when the engines were chosen; its file may have changed since."""
        os.chdir(cwd)
        found = read_settings(settings)
        served = {model: Remote(handle) for model, handle in handles.items()}
        gateway = Gateway(found.name or Path(found.config).stem, served_plan(config), served)
        keys = Keys(found.keys) if found.keys else None
        self.desk = Desk(gateway, found.limits, keys, found.default_model, self._lacking, self._counted)
        self._gateways = found.gateways
        self._looked, self._waiting = 0.0, list(served)
        self._listener: Listener | None = None
        if found.listen:
            self._listener = Listener(create_api(lambda: self.desk), found.listen.host, found.listen.port)

    async def check_health(self) -> None:
        """Asked by Serve; who raises is started again."""
        if self._listener is not None:
            self._listener.check()

    async def drain(self) -> None:
        """Refuses what is new, until what is under way has been answered."""
        admission = self.desk.admission
        admission.closing = True
        while admission.in_flight:
            await asyncio.sleep(0.05)

    async def counts(self) -> list[Metric]:
        """What this gateway has counted."""
        return self.desk.metrics.counts()

    async def _counted(self) -> list[list[Metric]]:
        """What each gateway has counted; of this one alone where the others do not answer."""
        if self._gateways == 1:
            return [await self.counts()]
        try:
            app = serve.get_replica_context().app_name
            handle = await asyncio.to_thread(serve.get_deployment_handle, GATEWAY, app)  # asks the controller
            found = await handle.broadcast("counts").results_async(timeout_s=COUNTS_SECONDS, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError):
            return [await self.counts()]
        return [counts for counts in found if isinstance(counts, list)]

    async def _lacking(self) -> list[str]:
        """Looked up at most once a second, whoever asks, and not in the event loop: it waits for the controller."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._waiting = await asyncio.to_thread(self._look, serve.get_replica_context().app_name)
        return self._waiting

    def _look(self, app: str) -> list[str]:
        running = serve.status().applications[app].deployments
        return [
            model
            for model in self.desk.gateway.served
            if not running[deployment_name(model)].replica_states.get("RUNNING", 0)
        ]


def _api() -> Any:
    return create_api(lambda: serve.get_replica_context().servable_object.desk)


def check(arguments: dict[str, Any]) -> tuple[Settings, RunConfig, Plan]:
    """Raises ConfigError or ModelError where something cannot be used."""
    settings = read_settings(arguments)
    config = load_config(settings.config, settings.set)
    plan = served_plan(config)
    if settings.keys:
        Keys(settings.keys)
    name = settings.name or Path(settings.config).stem
    if settings.default_model not in (None, ENSEMBLE + name, *plan.devices):
        raise ConfigError(unknown("model", str(settings.default_model), [ENSEMBLE + name, *plan.devices]))
    for model in settings.replicas:
        if model not in plan.devices:
            raise ConfigError("replicas: " + unknown("model", model, list(plan.devices)))
    return settings, config, plan


def build(arguments: dict[str, Any]) -> serve.Application:
    """Arguments: see `serve.settings.Settings`. Raises what `check` raises."""
    settings, config, plan = check(arguments)
    on_cpus = [model for model, device in plan.devices.items() if device == "cpu"]
    share = cpu_share(sum(settings.replicas.get(model, Replicas()).max for model in on_cpus), _cpus())
    handles = {model: _engines(model, device, share, config, settings) for model, device in plan.devices.items()}
    gateway = serve.deployment(
        serve.ingress(_api)(Ingress),
        name=GATEWAY,
        num_replicas=settings.gateways,
        max_ongoing_requests=100_000,  # refused by the gateway itself, at once and with the reason
        graceful_shutdown_timeout_s=settings.limits.seconds,
        graceful_shutdown_wait_loop_s=_leave_seconds(settings),
        ray_actor_options={"num_cpus": cpu_share(settings.gateways, _cpus())},
    )
    return gateway.bind(settings.model_dump(), config, os.getcwd(), handles)


def deployment_name(model: str) -> str:
    """A model may be named by a path; the digest tells names apart that look alike without their signs."""
    plain = "".join(c if c.isalnum() else "-" for c in Path(model).name.removesuffix(".yaml"))
    return f"engine-{plain}-{hashlib.blake2b(model.encode(), digest_size=3).hexdigest()}"


def _leave_seconds(settings: Settings) -> float:
    """In which a replica that is to stop gets no more requests: routers hear of it meanwhile, but for a server on one
    machine, which has let everybody be answered before."""
    return 0.2 if settings.listen else 2.0


def _cpus() -> float:
    """Ray's, as far as they are known: a cluster may get its first ones later."""
    return float(ray.cluster_resources().get("CPU", inf)) if ray.is_initialized() else inf


def _engines(model: str, device: str, cpus: float, run: RunConfig, settings: Settings) -> serve.Application:
    """cpus: of Ray's for each engine without a GPU."""
    config, replicas = run.models[model], settings.replicas.get(model, Replicas())
    gpus = config.engine.tensor_parallel_size if device == "cuda" else 0
    options: dict[str, Any] = {"num_gpus": gpus} if gpus else {"num_cpus": cpus}
    scaling: dict[str, Any] = {"num_replicas": replicas.max}
    if replicas.min != replicas.max:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas.min,
                "max_replicas": replicas.max,
                "target_ongoing_requests": replicas.ongoing,
            }
        }
    deployment = serve.deployment(
        EngineReplica,
        name=deployment_name(model),
        max_ongoing_requests=CALLS,
        max_queued_requests=CALLS,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=START_SECONDS,
        graceful_shutdown_timeout_s=60.0,
        graceful_shutdown_wait_loop_s=_leave_seconds(settings),
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        ray_actor_options=options,
        **scaling,
    )
    return deployment.bind(model, config, device, run.ray.stall_seconds)
