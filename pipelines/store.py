"""Looks after a score store: what is in it, is it whole, make it small, take data out.

python pipelines/store.py ls runs/store
python pipelines/store.py verify runs/store
python pipelines/store.py gc runs/store                        (not while a run uses it)
python pipelines/store.py export runs/store KEY out.parquet

The store and the exported file may be in an object store: s3://bucket/store, gs://bucket/store.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the project, not pipelines/

from ensemble.errors import ConfigError
from ensemble.files import location
from ensemble.names import unknown
from ensemble.store import KINDS, Kind, compact, export, is_store, open_store, segments, verify
from pipelines import cli


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["ls", "verify", "gc", "export"])
    parser.add_argument("store", help="folder of the store (store.path of the run config)")
    parser.add_argument("key", nargs="?", help="export: the member's key, as ls prints it")
    parser.add_argument("file", nargs="?", help="export: Parquet file to write")
    options = parser.parse_args()
    if not is_store(options.store):
        raise ConfigError(f"{options.store} is no score store (it has no schema.json); give a run config's store.path")
    root = open_store(options.store)
    if options.command == "export":
        return _export(root, options.key, options.file)
    members = list(_members(root))
    broken = 0
    for kind, key in members:
        if options.command == "gc":
            before = len(segments(root, kind, key))
            print(f"{key} {kind}: {before} segments -> 1, {compact(root, kind, key)} rows")
            continue
        problems = verify(root, kind, key)
        broken += len(problems.damaged)
        print(
            f"{key} {kind:7} {problems.rows:>9,} rows {len(segments(root, kind, key)):>5} segments  {_name(root, key)}"
        )
        if options.command == "verify":
            for line in problems.damaged:
                print(f"  {line}")
    if not members:
        print("the store is empty")
    return cli.SOME_FAILED if broken else cli.OK


def _export(root: Path, key: str | None, file: str | None) -> int:
    keys = {k: kind for kind, k in _members(root)}
    if key is None or file is None:
        raise ConfigError("export needs a member's key and a file: store.py export STORE KEY out.parquet")
    if key not in keys:
        raise ConfigError(unknown("member key", key, keys))
    print(f"{export(root, keys[key], key, location(file))} rows in {file}")
    return cli.OK


def _members(root: Path) -> list[tuple[Kind, str]]:
    return [(kind, key) for kind in KINDS for key in sorted({p.parent.name for p in (root / kind).glob("*/*.parquet")})]


def _name(root: Path, key: str) -> str:
    try:
        description = json.loads((root / "members" / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return f"{description['name']} ({description['hardware']})"


if __name__ == "__main__":
    cli.run(main)
