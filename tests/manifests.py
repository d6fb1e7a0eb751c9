"""What k8s/ renders to, and whether KubeRay, Kubernetes and Ray Serve would take it as it is meant: unknown keys are
errors here, where a cluster would drop some of them without a word."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from ensemble.config import ROOT
from ensemble.load import load_ablation, load_config
from pipelines import cli

CRDS = ROOT.parent / "shared" / "crds"
OVERLAYS = sorted(path.parent.relative_to(ROOT) for path in ROOT.glob("k8s/overlays/**/kustomization.yaml"))
OVERLAYS = [path for path in OVERLAYS if path.name != "settings"]
LONGEST_NAME = 47  # KubeRay appends to it, and labels hold 63 characters
Manifest = dict[str, Any]


@cache
def _rendered(overlay: Path) -> str:
    command = ["kubectl", "kustomize", str(ROOT / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def render(overlay: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(_rendered(overlay)))


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def closed(schema: Any) -> Any:
    """The schema of a custom resource, in which keys that it does not name are refused."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not free:
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


@cache
def _validator(kind: str) -> Draft202012Validator:
    schema = json.loads((CRDS / f"{kind.lower()}-ray-v1.json").read_text())
    schema["properties"] |= {"metadata": {}, "apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}}
    return Draft202012Validator(closed(schema))


def schema_errors(manifest: Manifest) -> list[str]:
    """Of a resource of KubeRay's, by the schemas of its release."""
    found = _validator(manifest["kind"]).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def cluster(manifest: Manifest) -> Manifest:
    spec = manifest["spec"]
    return dict(spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec["rayClusterConfig"])


def pods(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Each pod template of a resource of KubeRay's, with its name."""
    found = cluster(manifest)
    yield "head", found["headGroupSpec"]["template"]["spec"]
    for group in found["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]
    if "submitterPodTemplate" in manifest["spec"]:
        yield "submitter", manifest["spec"]["submitterPodTemplate"]["spec"]


def rule_errors(manifest: Manifest) -> list[str]:
    """What KubeRay asks beyond its schemas, and what we ask of every pod."""
    spec, found, errors = manifest["spec"], cluster(manifest), []
    name = manifest["metadata"]["name"]
    if len(name) > LONGEST_NAME:
        errors.append(f"{name}: longer than {LONGEST_NAME} characters")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        errors.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    if found.get("autoscalerOptions", {}).get("version") != "v2" or not found.get("enableInTreeAutoscaling"):
        errors.append("the autoscaler is not v2")
    if found.get("authOptions", {}).get("mode") != "token":
        errors.append("Ray takes commands without a token")
    if found["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        errors.append("the head takes work")
    for group, pod in pods(manifest):
        errors += [f"{group}: {error}" for error in _pod_errors(pod, group)]
    return errors


def _pod_errors(pod: Manifest, group: str) -> Iterator[str]:
    of_pod = pod.get("securityContext", {})
    if not of_pod.get("runAsNonRoot") or of_pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "may run as root, or without a seccomp profile"
    names = {volume["name"] for volume in pod.get("volumes", ())}
    for container in pod["containers"]:
        confined = container.get("securityContext", {})
        if confined.get("allowPrivilegeEscalation") is not False or confined["capabilities"]["drop"] != ["ALL"]:
            yield "may gain privileges"
        if {"readinessProbe", "livenessProbe"} & container.keys() or "shm" in str(pod.get("volumes")):
            yield "probes and /dev/shm are KubeRay's to write"
        resources = container["resources"]
        if resources["requests"].get("memory") != resources["limits"].get("memory") and group != "submitter":
            yield "the memory requested is not the limit"
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in names:
                yield f"no volume {mount['name']}"
        for variable in container.get("env", ()):
            if re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"]) and "value" in variable:
                yield f"{variable['name']} stands in the manifest: take it from a Secret"


def gpu_errors(manifest: Manifest, wanted: int) -> list[str]:
    """Whether the engines have so many L4s at most, on nodes that have them."""
    total, errors = 0, []
    for group in cluster(manifest)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        here = int(resources["limits"].get("nvidia.com/gpu", 0))
        if here != int(resources["requests"].get("nvidia.com/gpu", 0)):
            errors.append("GPUs requested are not the limit")
        if pod.get("nodeSelector", {}).get("cloud.google.com/gke-accelerator") != "nvidia-l4":
            errors.append("may land on a node without an L4")
        if not any(t["key"] == "nvidia.com/gpu" for t in pod.get("tolerations", ())):
            errors.append("does not tolerate GPU nodes")
        total += here * group["maxReplicas"]
    return errors + ([f"{total} GPUs instead of {wanted}"] if total != wanted else [])


def serve_errors(config: Any) -> list[str]:
    """Keys of a Serve config that Ray would drop without a word, and what it refuses."""
    from ray.serve.schema import ServeDeploySchema

    errors = list(_unknown(config, ServeDeploySchema, "serveConfigV2"))
    try:
        ServeDeploySchema.model_validate(config)
    except ValueError as e:
        errors.append(str(e))
    return errors


def _unknown(data: Any, model: Any, path: str) -> Iterator[str]:
    if isinstance(data, list):
        for i, one in enumerate(data):
            yield from _unknown(one, model, f"{path}.{i}")
    if not isinstance(data, dict) or not (isinstance(model, type) and issubclass(model, BaseModel)):
        return
    for key, value in data.items():
        if key not in model.model_fields:
            yield f"{path}.{key}: Ray Serve has no such key"
            continue
        for inner in _models(model.model_fields[key].annotation):
            yield from _unknown(value, inner, f"{path}.{key}")


def _models(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def command_errors(manifests: list[Manifest], job: Manifest) -> list[str]:
    """Whether the entrypoint is one of our pipelines, with options it has and a config that is mounted."""
    python, script, *words = shlex.split(job["spec"]["entrypoint"])
    ablate = script == "pipelines/ablate.py"
    if python != "python" or not (ablate or script == "pipelines/solve.py"):
        return [f"{python} {script}: not in the image"]
    parser = cli.parser("", "", "") if ablate else cli.solve_parser("", "")
    try:
        options = parser.parse_args(words)
        load = load_ablation if ablate else load_config
        load(mounted(manifests, options.config), cli.overrides(options))
    except SystemExit:
        return [f"{' '.join(words)}: not {script}'s options"]
    except Exception as e:
        return [f"{options.config}: {e}"]
    return []


def mounted(manifests: list[Manifest], path: str) -> Path:
    """The file of configs/ that a pod sees there. Raises ValueError where it is none."""
    (configs,) = [m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"] == "quorum-configs"]
    name = Path(path).name
    if Path(path).parent != Path("/etc/quorum") or name not in configs["data"]:
        raise ValueError(f"not one of {', '.join(configs['data'])}")
    source = ROOT / "configs" / name
    if configs["data"][name] != source.read_text("utf-8"):
        raise ValueError("differs from configs/")
    return source
