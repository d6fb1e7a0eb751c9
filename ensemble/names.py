"""Answers to a misspelt name: what was meant, and what there is."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, available: Iterable[str]) -> str:
    """One line such as `unknown metric 'acuracy'; did you mean 'accuracy'? available: accuracy, f1`."""
    names = sorted(set(available))
    near = meant(str(name), names)
    guess = f" did you mean {near!r}?" if near else ""
    return f"unknown {kind} {name!r};{guess} available: {', '.join(names)}"


def meant(name: str, available: Iterable[str], sure: float = 0.6) -> str | None:
    """Of the names the one most like it, if any is; sure: from 0, anything, to 1, the same."""
    near = difflib.get_close_matches(name, sorted(available), n=1, cutoff=sure)
    return near[0] if near else None
