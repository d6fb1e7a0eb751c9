"""Runs over a whole input. Modules that use Ray find this set, as it is read when Ray is imported."""

import os

# Ray Data's thread that an interrupt or a deadline left behind must not open a second connection when Ray is shut down.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
