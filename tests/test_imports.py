"""The core stays light: importing it loads neither Ray nor torch, vLLM or transformers."""

import subprocess
import sys

from ensemble.config import ROOT

HEAVY = {"ray", "torch", "vllm", "transformers", "scipy", "pandas", "pyarrow"}


def test_importing_every_module_of_the_core_is_light():
    modules = sorted(f"ensemble.{path.stem}" for path in (ROOT / "ensemble").glob("*.py") if path.stem != "__init__")
    assert "ensemble.engine" in modules
    code = f"import sys, {', '.join(modules)}\nprint(*({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_import_ensemble_takes_under_three_tenths_of_a_second():
    code = "import time; t = time.perf_counter(); import ensemble; print(time.perf_counter() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout)
        for _ in range(3)
    ]
    assert min(runs) < 0.3
