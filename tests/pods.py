"""Pods without Kubernetes: each has an address, processes and a /tmp of its own, finds the image's and the manifests'
files at their paths, and runs as user 1000 without privileges. Kernel namespaces do it (`unshare`, `ip`).

User 1000 is the one who runs the tests, by another number: so the environment may lie where only that one can read.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from ensemble.config import ROOT

NETWORK = "10.250.0"  # of the pods alone
ROUTER = 254
MADE = ("etc", "home", "opt")  # folders of / in which something is added to what this machine has
LEFT_OUT = ("mnt", "tmp", *MADE)
DEFAULTS = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/home/quorum"}
FILES = {  # no name server answers here
    "/etc/passwd": "quorum:x:1000:1000::/home/quorum:/bin/sh",
    "/etc/hosts": f"127.0.0.1 localhost {socket.gethostname()}",
    "/etc/resolv.conf": "",
}
CLIENT = """
import json, sys, httpx
for line in sys.stdin:
    method, url, headers, body = json.loads(line)
    try:
        answer = httpx.request(method, url, headers=headers, json=body, timeout=100)
        print(json.dumps([answer.status_code, answer.text]), flush=True)
    except httpx.TransportError as e:
        print(json.dumps([0, repr(e)]), flush=True)
"""
AS_USER = "exec unshare --user --map-user=1000 --map-group=1000 setpriv --no-new-privs env --ignore-environment"


def lacking() -> str | None:
    """Why there can be no pods here."""
    for tool in ("unshare", "nsenter", "setpriv", "pivot_root", "mount", "ip"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    trial = "ip link add pods type bridge && ip link add pod1 type veth peer name eth0 && unshare --user true"
    namespaces = ["--map-root-user", "--mount", "--net", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run(["unshare", *namespaces, "sh", "-c", trial], capture_output=True, text=True)
    return f"no namespaces for this user: {done.stderr.strip()[-200:]}" if done.returncode else None


def image_env() -> dict[str, str]:
    """What the Dockerfile's runtime stage sets."""
    text = (ROOT / "k8s/Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^ENV (.*PYTHONPATH=.*)$", text, re.MULTILINE)
    found = dict(word.split("=", 1) for word in shlex.split(line))
    return DEFAULTS | found | {"PATH": found["PATH"].replace("$PATH", DEFAULTS["PATH"])}


def image_code(folder: Path) -> None:
    """What the Dockerfile copies into its WORKDIR."""
    text = (ROOT / "k8s/Dockerfile").read_text()
    for words in re.findall(r"^COPY (?!--from|requirements)(.+) \S+$", text, re.MULTILINE):
        for name in words.split():
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, folder / name)


class Machine:
    """A file system and a network for pods. Use as a context manager, which ends them all.

    read, write: folders of this machine by the path at which pods see them. They also see its other files, but for
    /tmp, /mnt and what lies at those paths.
    """

    def __init__(self, folder: Path, read: Mapping[str, Path], write: Mapping[str, Path]) -> None:
        self.folder, self._pods = folder, dict[str, Pod]()
        self._client: subprocess.Popen[str] | None = None
        script = [
            "set -e",
            *("ip link set lo up", "ip link add pods type bridge", f"ip addr add {NETWORK}.{ROUTER}/24 dev pods"),
            *("ip link set pods up", "mount -t tmpfs -o mode=755 none /mnt", "cd /mnt"),
            "mkdir .host tmp home home/quorum",
        ]
        for path in Path("/").iterdir():
            if path.is_symlink():
                script.append(f"cp -P {path} .")
            elif path.is_dir() and path.name not in LEFT_OUT:
                script.append(f"mkdir {path.name}; mount --rbind {path} {path.name}")
        for path in (path for name in MADE for path in Path("/", name).glob("*")):
            if not any(Path(new).is_relative_to(path) for new in (*read, *write, "/home/quorum", *FILES)):
                script.append(f"mkdir -p .{path.parent}; ln -s {shlex.quote(f'/.host{path}')} .{path.parent}")
        script += [f"echo {shlex.quote(text)} > .{path}" for path, text in FILES.items()]
        for target, source in (write | read).items():
            script.append(f"mkdir -p .{target}; mount --bind {shlex.quote(str(source))} .{target}")
        script += [f"mount -o remount,bind,ro,nosuid,nodev .{target}" for target in read]
        script += ["pivot_root . .host", "cd /", "echo ready", "exec sleep infinity"]
        command = ["unshare", "--map-root-user", "--mount", "--net", "sh", "-c", "\n".join(script)]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        assert self._holder.stdout.readline() == "ready\n", self._holder.stderr.read()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._pods.values():
            pod.kill()
            pod.forget()
        for process in filter(None, (self._client, self._holder)):
            process.kill()
            process.communicate()

    def ask(self, method: str, url: str, headers: Mapping[str, str], body: object = None) -> tuple[int, str]:
        """Status and text of a pod's answer; status 0 and why where there is none. A process of its own sends it: to
        start one each time would take the engines' cores."""
        if self._client is None:
            command = self.inside("sh", "-c", _as_user(["python", "-c", CLIENT], image_env()))
            self._client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        print(json.dumps([method, url, dict(headers), body]), file=self._client.stdin, flush=True)
        status, text = json.loads(self._client.stdout.readline())
        return status, text

    def inside(self, *command: str) -> list[str]:
        """The command with all rights over the pods' network and files."""
        return ["nsenter", f"--target={self._holder.pid}", "--user", "--mount", "--net", "--preserve-credentials",
                *command]  # fmt: skip

    def run(self, command: Sequence[str], env: Mapping[str, str], seconds: float = 60) -> tuple[int, str]:
        """A command that soon ends, of user 1000 in the image's WORKDIR: its exit status and all it said."""
        done = subprocess.run(
            self.inside("sh", "-c", f"cd /opt/quorum; {_as_user(command, env)}"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, cwd="/",
        )  # fmt: skip
        return done.returncode, done.stdout

    @property
    def network(self) -> str:
        return _network(self._holder.pid)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> "Pod":
        assert name not in self._pods, "each pod is a new one"
        self._pods[name] = Pod(self, name, len(self._pods) + 1, command, env)
        return self._pods[name]


class Pod:
    """A command in namespaces of its own."""

    def __init__(
        self, machine: Machine, name: str, number: int, command: Sequence[str], env: Mapping[str, str]
    ) -> None:
        self.name, self.address = name, f"{NETWORK}.{number}"
        self.folder = machine.folder / name
        (self.folder / "tmp").mkdir(parents=True)
        script = [
            "until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done",
            *("ip link set lo up", f"ip addr add {self.address}/24 dev eth0", "ip link set eth0 up"),
            *(
                f"ip route add default via {NETWORK}.{ROUTER}",
                f"mount --bind {shlex.quote(f'/.host{self.folder}/tmp')} /tmp",
            ),
            *("cd /opt/quorum", _as_user(command, env)),
        ]
        new = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        inside = machine.inside(*new, "sh", "-c", "\n".join(script))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(inside, stdout=log, stderr=log, cwd="/")
        shared = _network(os.getpid()), machine.network
        until(lambda: not self.alive() or _network(self._process.pid) not in shared, 10, self)
        assert self.alive(), self.log.read_text()
        # While it is open the address stays, so that who calls a killed process hears at once that nobody is there.
        self._network = os.open(f"/proc/{self._process.pid}/ns/net", os.O_RDONLY)
        link = ["ip", "link", "add", f"pod{number}", "master", "pods", "up", "type", "veth", "peer", "name", "eth0"]
        subprocess.run(machine.inside(*link, "netns", str(self._process.pid)), check=True)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """All of its processes at once; its address stays."""
        if self.alive():
            for process in psutil.Process(self._process.pid).children():
                process.kill()  # the first of its namespace, with which all others end
        self._process.wait(30)

    def forget(self) -> None:
        os.close(self._network)


def until(
    condition: Callable[[], object], seconds: float, *pods: Pod, told: Callable[[], object] = str, every: float = 0.2
) -> None:
    """Waits, while the pods live. told: what helps who looks for the reason where it takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        for pod in pods:
            assert pod.alive(), pod.log.read_text()[-3000:]
        assert time.monotonic() < end, told()
        time.sleep(every)


def _network(process: int) -> str:
    return os.readlink(f"/proc/{process}/ns/net")


def _as_user(command: Sequence[str], env: Mapping[str, str]) -> str:
    return f"{AS_USER} {shlex.join([f'{name}={value}' for name, value in env.items()] + list(command))}"
