"""A cluster of strangers: a machine with an sshd of its own, the account of whoever runs vLLM
there, and the account of whoever attaches: not root, with the installed wheel and no checkout.

Both are in one set of namespaces (support.account), so nothing of this machine's is met.
"""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import PROJECT
from support.account import Machine

#: Who runs vLLM and lets himself be logged in as; who attaches.
OWNER, VISITOR = "orchestrate-owner", "orchestrate-visitor"
#: A server's command line.
FLAGS = ("served/it", "--tensor-parallel-size", "2", "--max-model-len=4096", "--enforce-eager")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SETUP = """
for name in "$1" "$2"; do useradd --create-home --shell /bin/bash "$name"; done
useradd --create-home --shell /usr/sbin/nologin orchestrate-shut
# As with a password, which nobody knows: sshd lets nobody into a locked account.
for name in "$1" "$2" orchestrate-shut; do usermod --password '*' "$name"; done
mkdir -p /run/sshd /home/keys
chmod 755 /home /home/keys
ssh-keygen -q -t ed25519 -N "" -f /home/keys/host
ssh-keygen -q -t ed25519 -N "" -f /home/keys/other
install -d -m 700 -o "$2" "/home/$2/.ssh"
ssh-keygen -q -t ed25519 -N "" -f "/home/$2/.ssh/id_ed25519"
cp "/home/$2/.ssh/id_ed25519.pub" /home/keys/authorized
cat >/home/keys/sshd <<END
HostKey /home/keys/host
AuthorizedKeysFile /home/keys/authorized
PasswordAuthentication no
UsePAM no
PidFile none
StrictModes no
ListenAddress 127.0.0.1:$3
END
chown -R "$2" "/home/$2"
"""
CONFIG = """
Host box box-other box-new
  Port {port}
  HostName 127.0.0.1
  User {owner}
Host shut
  Port {port}
  HostName 127.0.0.1
  User orchestrate-shut
Host stranger
  Port {port}
  HostName 127.0.0.1
  User nobody
  IdentityFile ~/nothing
  IdentitiesOnly yes
Host box-other
  HostKeyAlias other
Host box-new
  HostKeyAlias never-seen
# What would hide an unknown host if it counted.
Host *
  StrictHostKeyChecking {lax}
  UserKnownHostsFile ~/.ssh/known
  RemoteCommand echo not this
  RequestTTY yes
"""


@dataclass
class Strangers:
    """The machine, and the visitor's ``orchestrate``."""

    machine: Machine
    orchestrate: Path

    def argv(self, who: str, *words: str | Path, **env: str) -> list[str]:
        # It ends with nsenter, which is what a test can kill.
        ids = [f"--reuid={who}", f"--regid={who}", "--init-groups", "--pdeathsig=KILL"]
        given = [f"{name}={value}" for name, value in env.items()]
        clean = ["env", "-i", f"HOME=/home/{who}", f"PATH={PATH}", f"USER={who}", *given]
        inside = ["sh", "-c", 'cd && exec "$@"', "sh", *map(str, words)]
        return [*self.machine.inside, "setpriv", *ids, *clean, *inside]

    def run(
        self, *words: str | Path, who: str = VISITOR, **env: str
    ) -> subprocess.CompletedProcess[str]:
        argv = self.argv(who, *words, **env)
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900)

    def ask(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``orchestrate`` as the visitor."""
        return self.run(self.orchestrate, *words, **env)

    def json(self, *words: str | Path, **env: str) -> dict[str, Any]:
        done = self.ask(*words, "--json", **env)
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def owners(self, name: str, text: str) -> Path:
        """A program of the owner's, executable."""
        path = f"/home/{OWNER}/{name}"
        self.machine.sh('printf %s "$2" >"$1" && chmod 755 "$1"', path, text)
        return Path(path)

    @contextmanager
    def serving(
        self, *flags: str, who: str = OWNER, group: Path | None = None, **env: str
    ) -> Iterator[str]:
        """A stand-in for a server, with a real one's command line; its URL. ``group``: a control
        group to be in."""
        program = (PROJECT / "tests/support/openai_like.py").read_text()
        path = self.owners("vllm", program)
        argv = self.argv(who, "python3", path, "serve", *flags, **env)
        if group:
            inside = len(self.machine.inside)
            enter = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(group)]
            argv = argv[:inside] + enter + argv[inside:]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            scheme = "https" if "--tls" in flags else "http"
            yield f"{scheme}://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@contextmanager
def strangers(machine: Machine, orchestrate: Path) -> Iterator[Strangers]:
    """The accounts, and the sshd, for the body."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    machine.sh(SETUP, OWNER, VISITOR, port)
    argv = [*machine.inside, "/usr/sbin/sshd", "-D", "-e", "-f", "/home/keys/sshd"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        # It says so when it listens.
        assert any("listening on" in line for line in process.stderr), "sshd did not start"
        host = machine.sh("cat /home/keys/host.pub").split()
        config = CONFIG.format(port=port, owner=OWNER, lax="no")
        known = f"[127.0.0.1]:{port} {host[0]} {host[1]}\n"
        other = machine.sh("cat /home/keys/other.pub").split()
        known += f"other {other[0]} {other[1]}\n"
        for name, text in (("config", config), ("known", known)):
            script = 'printf %s "$2" >"$1" && chown "$3" "$1"'
            machine.sh(script, f"/home/{VISITOR}/.ssh/{name}", text, VISITOR)
        yield Strangers(machine, orchestrate)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


names = (f"try-{number}" for number in itertools.count())


def attach(cluster: Strangers, url: str, *words: str, **env: str) -> tuple[dict[str, Any], str]:
    """What was found, and the profile's text."""
    name = next(names)
    found = cluster.json("attach", url, "--name", name, *words, **env)
    return found, cluster.run("cat", str(found["profile"])).stdout


def left(cluster: Strangers) -> list[str]:
    """The owner's files that are newer than his account, and his processes."""
    places = f"/home/{OWNER} /tmp /var/tmp /dev/shm"
    newer = f"-user {OWNER} -newer /home/keys/authorized"
    files = cluster.machine.sh(f"find {places} -xdev {newer} -print 2>/dev/null || true")
    running = cluster.machine.sh(f"ps -u {OWNER} -o stat=,args= || true")
    return [*files.splitlines(), *(line for line in running.splitlines() if line[0] != "Z")]


#: Loads that take a second.
BRIEF = """
bench:
  repeats: 2
  workloads:
    brief: { prompt_tokens: 16, output_tokens: 41, requests: 3, concurrency: 2 }
    steady: { prompt_tokens: 16, output_tokens: 4, requests: 3, rate: 50 }
"""


def loadable(cluster: Strangers, url: str, *words: str) -> str:
    """A profile with brief loads, and no node whose ranks a stand-in does not have."""
    found, text = attach(cluster, url, *words)
    path = str(found["profile"])
    script = 'printf %s "$2" >"$1" && chown "$3" "$1"'
    cluster.machine.sh(script, path, text + BRIEF, VISITOR)
    return path
