"""Run configs: YAML in, checked records out. Unknown keys are refused with the nearest known one.

A run config names its models and templates; their own files (`configs/models/NAME.yaml`,
`configs/templates/NAME.yaml`) are merged in here, so that the resolved config says everything about a run and
`--set models.smollm2.engine.max_num_seqs=8` reaches into any of them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from ensemble.config import ROOT, Record, RunConfig
from ensemble.errors import ConfigError
from ensemble.grid import AblationConfig
from ensemble.names import unknown
from ensemble.validation import problems

Checked = TypeVar("Checked", bound=Record)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The resolved run config. Raises ConfigError with file, key and cure."""
    data = _changed(Path(path), overrides)
    members = [m for plan in _mapping(data.get("tasks")).values() for m in _members(plan)]
    return _validate(RunConfig, _resolved(data, Path(path), members), str(path))


def load_ablation(path: str | Path, overrides: Sequence[str] = ()) -> AblationConfig:
    """The resolved config of an ablation. Raises ConfigError with file, key and cure."""
    data = _changed(Path(path), overrides)
    grids = [grid for grid in data.get("grids") or () if isinstance(grid, dict)]
    axes = [{key: name} for grid in grids for key in ("model", "template") for name in _listed(grid.get(key))]
    members = [*axes, *(member for grid in grids for member in _members(grid))]
    return _validate(AblationConfig, _resolved(data, Path(path), members), str(path))


def _changed(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    data = read_yaml(path)
    for override in overrides:
        _apply(data, override)
    return data


def _members(section: Any) -> list[dict[str, Any]]:
    return [member for member in _listed(_mapping(section).get("members")) if isinstance(member, dict)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _resolved(data: dict[str, Any], path: Path, members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """With the files of the models and templates that members name merged in."""
    for section, key in (("models", "model"), ("templates", "template")):
        inline = _mapping(data.get(section))
        names = dict.fromkeys([*inline, *(str(m[key]) for m in members if m.get(key))])
        data[section] = {name: _merge(_named(section, name, path, name in inline), inline.get(name)) for name in names}
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(p.as_posix() for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = unknown("config", path.as_posix(), near) if near else f"no such file: {path}"
        raise ConfigError(hint) from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from None
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a config is a YAML mapping (key: value), this is {type(data).__name__}")
    return data


def _validate(kind: type[Checked], data: dict[str, Any], origin: str) -> Checked:
    try:
        # Through JSON, so that strict records still take YAML's lists for tuples.
        return kind.model_validate_json(json.dumps(data, default=str))
    except ValidationError as e:
        raise ConfigError("; ".join(f"{origin}: {problem}" for problem in problems(e, kind))) from None


def _named(section: str, name: str, origin: Path, optional: bool) -> dict[str, Any]:
    """The YAML of a model or template: a path, or a name looked up beside the run config and in configs/."""
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name))
    folders = [origin.parent / section, ROOT / "configs" / section]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return read_yaml(folder / f"{name}.yaml")
    if optional:
        return {}
    available = [p.stem for folder in folders for p in folder.glob("*.yaml")]
    raise ConfigError(f"{origin}: {unknown(section.removesuffix('s'), name, available)}")


def _apply(data: dict[str, Any], override: str) -> None:
    """`a.b.0=c` sets data["a"]["b"][0] to the YAML value c."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {override}: write it as key.key=value, for example --set seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        node = node[_index(node, part, key)] if isinstance(node, list) else _descend(node, part)
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {key}: {part!r} is a value, not a section")
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    else:
        node[last] = value


def _descend(node: dict[str, Any], part: str) -> Any:
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"--set {key}: {part!r} is not an index of a list of {len(node)} (0 to {len(node) - 1})")
    return int(part)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _merge(base: dict[str, Any], over: Any) -> dict[str, Any]:
    """`over` laid onto `base`, section by section."""
    merged = dict(base)
    for key, value in _mapping(over).items():
        merged[key] = (
            _merge(merged[key], value) if isinstance(merged.get(key), dict) and isinstance(value, dict) else value
        )
    return merged
