"""Models from the hub: what is downloaded, what is told where it cannot be, and what works offline."""

import dataclasses
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble.config import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for; `files` by repository."""

    files: dict[str, dict[str, bytes]]
    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0].removeprefix("/api/models")
        repository = "/".join(path.split("/")[1:3])
        files = self.files.get(repository)
        if repository == "o/gated":
            self.answer(403, b"{}", X_Error_Code="GatedRepo")
        elif files is None:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        elif "/nobranch" in path:
            self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        elif "/revision/" in path:
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
        elif "/tree/" in path:
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        else:
            content = files[path.split("/", 5)[5]]
            self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)


@dataclasses.dataclass
class Calls:
    """Runs calls of `models` in a new process: the hub's library reads its settings when it is imported."""

    environment: dict[str, str]
    asked: list[str]

    def __call__(self, *calls: tuple[str, dict[str, Any]], **environment: str) -> list[str]:
        code = (
            "import json, sys\n"
            "from pathlib import Path\n"
            "from ensemble import errors, models\n"
            "from ensemble.config import ModelConfig\n"
            "for call, source in json.loads(sys.argv[1]):\n"
            "    config = ModelConfig.model_validate({'source': source, 'context_length': 16})\n"
            "    try:\n"
            "        print(models.fingerprint(config) if call == 'fingerprint' else\n"
            "              models.prepare('m', config, str, tokenizer_only=call == 'tokenizer'))\n"
            "    except errors.ModelError as e:\n"
            "        print(e)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(calls)],
            capture_output=True, text=True, cwd=ROOT, env=os.environ | self.environment | environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Calls]:
    pieces = {"config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"#", "original/model.safetensors": b"old"}
    files = {"o/safe": {**pieces, "model.safetensors": b"w", "pytorch_model.bin": b"w"}}
    files["o/bin"] = {**pieces, "pytorch_model.bin": b"w", "optimizer.bin": b"w"}
    handler = type("Handler", (Hub,), {"files": files, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home, endpoint = str(tmp_path / "hf"), f"http://127.0.0.1:{server.server_port}"
        environment = {"HF_HOME": home, "HF_HUB_CACHE": f"{home}/hub", "HF_TOKEN": "", "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        yield Calls(environment, handler.asked)  # type: ignore[attr-defined]
        server.shutdown()


def names(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_hub_downloads_what_is_needed(hub: Calls, tmp_path: Path) -> None:
    pinned, moving = {"hub": "o/safe", "revision": COMMIT}, {"hub": "o/safe"}
    before, folder = hub(("fingerprint", moving), ("tokenizer", moving))
    assert folder == str(tmp_path / "hf/hub/models--o--safe/snapshots" / COMMIT)
    assert names(folder) == ["config.json", "tokenizer.json"]
    again, after, pinned_print, with_bin, bin_print = hub(
        ("prepare", moving), ("fingerprint", moving), ("fingerprint", pinned),
        ("prepare", {"hub": "o/bin"}), ("fingerprint", {"hub": "o/bin"}),
    )  # fmt: skip
    assert names(again) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert names(with_bin) == ["config.json", "pytorch_model.bin", "tokenizer.json"]
    assert before == after == pinned_print != bin_print

    hub.asked.clear()
    assert hub(("prepare", moving), ("prepare", pinned), ("fingerprint", moving), HF_HUB_OFFLINE="1") == [
        again, again, pinned_print
    ]  # fmt: skip
    assert hub.asked == []


def test_hub_answers_with_a_cure(hub: Calls) -> None:
    gated, none, revision, odd, pin = hub(
        ("prepare", {"hub": "o/gated"}),
        ("prepare", {"hub": "o/none", "revision": COMMIT}),
        ("prepare", {"hub": "o/safe", "revision": "nobranch"}),
        ("prepare", {"hub": "not/an/id"}),
        ("fingerprint", {"hub": "o/none"}),
    )
    assert "model m: o/gated is gated: accept its terms at https://huggingface.co/o/gated, then `hf auth" in gated
    assert "the hub shows no o/none: check source.hub, `hf auth login`" in none
    assert "o/safe has no revision nobranch: check source.revision" in revision
    assert "source.hub 'not/an/id' is no hub id: write OWNER/NAME" in odd
    assert "the hub shows no o/none" in pin
    assert pin.endswith("pin source.revision to a commit")


def test_hub_offline(hub: Calls) -> None:
    sources = [{"hub": "o/safe"}, {"hub": "o/safe", "revision": COMMIT}]
    offline = hub(*(("prepare", source) for source in sources), ("fingerprint", sources[0]), HF_HUB_OFFLINE="1")
    unreachable = hub(("prepare", sources[0]), ("fingerprint", sources[0]), HF_ENDPOINT="http://127.0.0.1:9")
    assert (len(offline), len(unreachable)) == (3, 2)
    for line in offline + unreachable:
        assert "o/safe cannot be fetched (" in line
        assert "check the network and HF_HUB_OFFLINE, or give source.path" in line
    assert offline[2].endswith("or pin source.revision to a commit")
    assert hub.asked == []
