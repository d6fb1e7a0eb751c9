"""Answers to a misspelt name: what was meant, and what there is."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, available: Iterable[str]) -> str:
    """One line such as `unknown metric 'acuracy'; did you mean 'accuracy'? available: accuracy, f1`."""
    names = sorted(available)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    guess = f" did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r};{guess} available: {', '.join(names)}"
