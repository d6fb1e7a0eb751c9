"""Child processes that end with their parent, whatever ends it.

vLLM's engine core is a process of its own and holds the GPU's memory. Where its parent is killed (-9, out of memory, a
lost driver) nobody tells it. Linux can: a process may ask for a signal at its parent's death (prctl, PR_SET_PDEATHSIG),
and keeps that wish when it becomes another program. So children are started by a small script that asks first.
"""

import multiprocessing
import os
import shlex
import sys
from hashlib import blake2b

from ensemble.models import home

PARENT = "QUORUM_PARENT"  # the variable with the parent's process id
# 1 is PR_SET_PDEATHSIG, 9 SIGKILL. The parent may have died before the wish was made: then its id has changed.
TIE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    f"os.getppid() == int(os.environ.pop('{PARENT}')) or os._exit(1); os.execv(sys.argv[1], sys.argv[1:])"
)


def tie_children() -> None:
    """From now on this process's `multiprocessing` children (of method spawn) die with it; Linux only."""
    if sys.platform != "linux":
        return
    python = shlex.quote(sys.executable)
    text = f'#!/bin/sh\nexec {python} -ISc {shlex.quote(TIE)} {python} "$@"\n'
    script = home() / f"python-{blake2b(text.encode(), digest_size=6).hexdigest()}"
    if not script.exists():
        script.parent.mkdir(parents=True, exist_ok=True)
        own = script.with_suffix(f".{os.getpid()}")
        own.write_text(text)
        own.chmod(0o755)
        own.replace(script)
    os.environ[PARENT] = str(os.getpid())
    multiprocessing.set_executable(str(script))
