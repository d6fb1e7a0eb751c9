"""Answers to a misspelt name: what was meant, and what there is."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ensemble.errors import ConfigError

T = TypeVar("T")


def unknown(kind: str, name: object, available: Iterable[str]) -> str:
    """One line such as `unknown metric 'acuracy'; did you mean 'accuracy'? available: accuracy, f1`."""
    names = sorted(available)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    guess = f" did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r};{guess} available: {', '.join(names)}"


def lookup(registry: Mapping[str, T], kind: str, name: str) -> T:
    """`registry[name]`, or a ConfigError that names the nearest known one."""
    try:
        return registry[name]
    except KeyError:
        raise ConfigError(unknown(kind, name, registry)) from None
