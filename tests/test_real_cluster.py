"""The manifests of k8s/overlays/local-cpu without Kubernetes: their command and Serve config, word by word, on a Ray
cluster of several nodes that is started as KubeRay starts it, with the real model and vLLM on CPU.

Nodes are pods of tests/pods.py, which says who user 1000 is; no file of the code or of the environment can be written.
"""

import json
import secrets
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble.config import ROOT
from ensemble.models import home
from tests import pods
from tests.demo import lines, stored_rows
from tests.manifests import Manifest, cluster, of_kind, render
from tests.pods import Machine, Pod, until

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
]

OVERLAY = Path("k8s/overlays/local-cpu")
MODEL = "smollm2_gptq"
TOKEN, KEY = secrets.token_hex(32), secrets.token_hex(16)
GIB = 2**30
RAY = ("python", "-m", "ray.scripts.scripts")  # `ray` itself starts by the name that its environment has outside
PREPARE = f"""
from ensemble.load import load_config
from ensemble.models import prepare
prepare("{MODEL}", load_config("configs/demo.yaml").models["{MODEL}"], print)
"""


def rendered(use: str, kind: str) -> Manifest:
    (found,) = of_kind(render(OVERLAY / use), kind)
    return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[Machine]:
    """What the image, the ConfigMap, the Secret and the volumes hold, where pods find it; `/data` is `data`."""
    if (reason := pods.lacking()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("machine")
    for name in ("code", "data", "models/quorum/models", "configs", "keys"):
        (folder / name).mkdir(parents=True)
    pods.image_code(folder / "code")
    (configs,) = [
        m for m in of_kind(render(OVERLAY / "solve"), "ConfigMap") if m["metadata"]["name"] == "quorum-configs"
    ]
    for name, text in configs["data"].items():
        (folder / "configs" / name).write_text(text)
    (folder / "keys/keys").write_text(f"test {KEY}\n")
    subprocess.run([sys.executable, "-c", PREPARE], cwd=ROOT, check=True, capture_output=True, timeout=400)
    read = {"/opt/quorum": folder / "code", "/opt/venv": Path(sys.prefix), "/etc/quorum": folder / "configs",
            "/etc/quorum-keys": folder / "keys", "/models/quorum/models": home() / "models"}  # fmt: skip
    write = {"/data": folder / "data", "/models": folder / "models"}
    with Machine(folder, read, write) as found:
        yield found


class Cluster:
    """Of a RayService's manifest, with no nodes yet."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name, self.spec = machine, name, cluster(rendered("serve", "RayService"))
        assert self.spec["authOptions"] == {"mode": "token"}
        self.env = pods.image_env() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        self.head = self._start(
            "head", self.spec["headGroupSpec"], "--head", "--dashboard-host=0.0.0.0", "--no-monitor"
        )
        self.dashboard = f"http://{self.head.address}:8265"
        until(lambda: self.api("GET", "jobs/")[0] == 200, 60, self.head, told=lambda: self.api("GET", "jobs/"))

    def worker(self, name: str) -> Pod:
        (group,) = self.spec["workerGroupSpecs"]
        return self._start(name, group, f"--address={self.head.address}:6379")

    def _start(self, name: str, group: Manifest, *options: str) -> Pod:
        """As KubeRay puts a container's command together."""
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        parameters = {"num-cpus": limits["cpu"], "memory": int(limits["memory"].removesuffix("Gi")) * GIB}
        parameters |= {"metrics-export-port": 8080, "dashboard-agent-listen-port": 52365} | group["rayStartParams"]
        env = self.env | {one["name"]: one["value"] for one in container["env"] if "value" in one}
        command = [*RAY, "start", "--block", *options, *(f"--{key}={value}" for key, value in parameters.items())]
        return self.machine.start(f"{self.name}-{name}", command, env)

    def api(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """The dashboard's answer, as the operator asks it; status 0 where there is none."""
        status, text = self.machine.ask(
            method, f"{self.dashboard}/api/{path}", {"Authorization": f"Bearer {TOKEN}"}, body
        )
        return status, json.loads(text) if status == 200 and text else text

    def submit(self, job: str) -> None:
        """As the submitter's pod does."""
        entrypoint = shlex.split(rendered("solve", "RayJob")["spec"]["entrypoint"])
        status, said = self._job("submit", "--no-wait", "--submission-id", job, "--", *entrypoint)
        assert status == 0, said

    def logs(self, job: str) -> str:
        return self._job("logs", job)[1]

    def status(self, job: str) -> str:
        return str(self.api("GET", f"jobs/{job}")[1]["status"])

    def _job(self, verb: str, *words: str) -> tuple[int, str]:
        return self.machine.run([*RAY, "job", verb, "--address", self.dashboard, *words], self.env)


@pytest.fixture(scope="module")
def second(machine) -> tuple[Cluster, Pod]:
    """A new head, as after the first one's loss, and a worker."""
    found = Cluster(machine, "second")
    return found, found.worker("one")


def test_a_job_outlives_a_node_and_the_next_one_goes_on_after_the_heads_loss(machine, request):
    data = machine.folder / "data"

    def rows() -> int:
        return stored_rows(data / "store")

    first = Cluster(machine, "first")
    one = first.worker("one")
    first.submit("first")
    until(lambda: rows() >= 4, 120, first.head, one, told=lambda: first.logs("first"))
    one.kill()
    before = rows()
    other = first.worker("two")  # as the autoscaler would bring it
    until(lambda: rows() >= before + 4, 150, first.head, other, told=lambda: first.logs("first"))
    assert first.status("first") == "RUNNING"
    first.head.kill()
    other.kill()
    kept = rows()
    assert before < kept < 60

    cluster, worker = request.getfixturevalue("second")
    cluster.submit("second")
    until(lambda: cluster.status("second") not in ("PENDING", "RUNNING"), 200, cluster.head, worker,
          told=lambda: cluster.logs("second"), every=1)  # fmt: skip
    log = cluster.logs("second")
    assert cluster.status("second") == "SUCCEEDED", log
    assert f"60 answered ({kept} from the store, {60 - kept} computed)" in log
    assert f"/{60 - kept} questions, " in log  # its progress
    run = data / "runs/solve"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["questions"]["answered"] == 60
    assert (manifest["questions"]["from_store"], manifest["questions"]["computed"]) == (kept, 60 - kept)
    assert manifest["job"] == "second"
    assert manifest["versions"]["quorum"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert not list((worker.folder / "tmp").glob("torchinductor*/*"))  # not every machine has a compiler
    ids = [row["id"] for row in lines(ROOT / "configs/demo/questions.jsonl")]
    assert [row["id"] for row in lines(run / "predictions.jsonl")] == ids


def test_the_endpoint_answers_who_has_a_key(second):
    cluster, worker = second
    config = yaml.safe_load(rendered("serve", "RayService")["spec"]["serveConfigV2"])
    assert cluster.api("PUT", "serve/applications/", config)[0] == 200

    def state() -> Any:
        return cluster.api("GET", "serve/applications/")[1]

    def status() -> str:
        return str(state()["applications"].get("quorum", {}).get("status"))

    until(lambda: status() not in ("None", "NOT_STARTED", "DEPLOYING"), 150, cluster.head, worker, told=state, every=1)
    assert status() == "RUNNING", state()
    base, key = f"http://{worker.address}:8000", {"Authorization": f"Bearer {KEY}"}
    question = {"text": "What is the capital of France?", "choices": ["Paris", "Rome"]}
    assert cluster.machine.ask("GET", f"{base}/-/healthz", {}) == (200, "success")
    assert cluster.machine.ask("GET", f"{base}/readyz", {})[0] == 200
    assert cluster.machine.ask("POST", f"{base}/v1/solve", {}, question)[0] == 401
    code, said = cluster.machine.ask("POST", f"{base}/v1/solve", key, question)
    assert code == 200, said
    assert json.loads(said)["answer_text"] == "Paris"
