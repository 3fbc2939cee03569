"""Machines of strangers: the simulated cluster's image in namespaces, each with processes, a
network, accounts and an sshd of its own, and nothing of ours but the image's vLLM and Ray.

A desk stands in the same network: the namespace that whoever attaches works in.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.provision.machines import netns

#: Who runs vLLM there, and somebody else who may log in; neither has other rights.
OWNER, GUEST, UID = "owner", "guest", 1000
#: The network of the machines; the desk is its first address.
NETWORK = "10.97.0"
VENV = "/opt/venvs/orchestrate"
#: Like profiles/sim.yml: no compiler in the image, little memory, shared cores.
ENV = {
    "PATH": f"{VENV}/bin:/usr/sbin:/usr/bin",
    "HOME": f"/home/{OWNER}",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
#: Becomes the first process of a machine: $1 a directory, $2 the image, $3 the name, $4 the
#: address, $5 the key that may log in, then the accounts.
BOOT = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 scratch "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" root "$1/root"
cd "$1/root"
hostname "$3"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --bind /dev dev
for place in dev/shm tmp run; do mount -t tmpfs -o mode=1777 tmpfs "$place"; done
printf '127.0.0.1 localhost\\n%s %s\\n' "$4" "$3" >etc/hosts
mkdir -p keys run/sshd
chmod 755 run run/sshd
printf '%s' "$5" >keys/authorized
address="$4" id=1000
shift 5
for name; do
    echo "$name:x:$id:$id::/home/$name:/bin/bash" >>etc/passwd
    echo "$name:x:$id:" >>etc/group
    echo "$name:*:19000:0:99999:7:::" >>etc/shadow
    mkdir -p "home/$name"
    chown "$id:$id" "home/$name"
    chmod 700 "home/$name"
    id=$((id + 1))
done
ssh-keygen -q -t ed25519 -N "" -f keys/host
cat >keys/sshd <<END
HostKey /keys/host
AuthorizedKeysFile /keys/authorized
PasswordAuthentication no
UsePAM no
PidFile none
StrictModes no
ListenAddress $address:22
END
cat keys/host.pub
exec chroot . /usr/sbin/sshd -D -e -f /keys/sshd
"""


@dataclass(frozen=True)
class Box:
    """A machine: how to get into it as root, its address, its host key."""

    name: str
    address: str
    first: int
    root: Path
    host_key: str

    def argv(self, *words: str | Path, **env: str) -> list[str]:
        """A command there, as the owner."""
        enter = ["nsenter", f"--target={self.first}", "--all", "--"]
        who = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        given = [f"{key}={value}" for key, value in {**ENV, **env}.items()]
        inside = [*who, "--pdeathsig=KILL", "env", "-i", *given]
        # --all enters no other root directory: that is the first process's.
        enter[2:2] = ["--root", "--wd"]
        return [*enter, *inside, *map(str, words)]

    def run(self, *words: str | Path, **env: str) -> str:
        done = subprocess.run(
            self.argv(*words, **env), capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def running(
        self, log: Path, *words: str | Path, **env: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A program of the owner's, for the body."""
        with log.open("wb") as out:
            process = subprocess.Popen(self.argv(*words, **env), stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # What it started may outlive it; this shell itself is spared.
            subprocess.run(self.argv("sh", "-c", "kill -KILL -1"), check=False)


@contextmanager
def boxes(
    root: Path, scratch: Path, space: str, names: Sequence[str], key: str
) -> Iterator[list[Box]]:
    """Machines of the image at ``root``, in one network with the namespace ``space``, the desk.

    ``key``: the public key of who may log in as the owner.
    """
    with ExitStack() as stack:
        stack.callback(netns.delete, space)
        netns.delete(space)
        netns.create(space)
        netns.ip(space, "link", "add", "net0", "type", "bridge")
        netns.ip(space, "addr", "add", f"{NETWORK}.1/24", "dev", "net0")
        netns.ip(space, "link", "set", "net0", "up")
        made = []
        for number, name in enumerate(names):
            place = scratch / name
            place.mkdir()
            made.append(stack.enter_context(_box(root, place, space, name, number, key)))
        yield made


@contextmanager
def _box(root: Path, place: Path, space: str, name: str, number: int, key: str) -> Iterator[Box]:
    own, address = f"{space}-{name}", f"{NETWORK}.{10 + number}"
    netns.delete(own)
    netns.create(own)
    try:
        peer = ["peer", "name", "eth0", "netns", own]
        netns.ip(space, "link", "add", f"to{number}", "type", "veth", *peer)
        netns.ip(space, "link", "set", f"to{number}", "master", "net0", "up")
        netns.ip(own, "addr", "add", f"{address}/24", "dev", "eth0")
        netns.ip(own, "link", "set", "eth0", "up")
        netns.ip(own, "route", "add", "default", "via", f"{NETWORK}.1")
        argv = ["ip", "netns", "exec", own]
        argv += ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        words = [place, root, name, address, key, OWNER, GUEST]
        holder = subprocess.Popen(
            [*argv, "sh", "-c", BOOT, "sh", *map(str, words)], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert holder.stdout is not None and holder.stderr is not None
        try:
            host_key = " ".join(holder.stdout.readline().split()[:2])
            # It says so when it listens.
            assert any("listening on" in line for line in holder.stderr), f"{name}: no sshd"
            children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
            yield Box(name, address, int(children[0]), place / "root", host_key)
        finally:
            holder.kill()
            holder.wait()
            holder.stdout.close()
            holder.stderr.close()
    finally:
        netns.delete(own)


def reached_as(hosts: Mapping[str, Box]) -> tuple[str, str]:
    """Lines of an ssh configuration, and of a known_hosts, that reach the machines by name; as the
    guest by ``guest-`` and the name."""
    config = [
        f"Host {prefix}{name}\n  HostName {box.address}\n  User {user}\n  Port 22\n"
        for name, box in hosts.items()
        for prefix, user in (("", OWNER), ("guest-", GUEST))
    ]
    known = [f"{box.address} {box.host_key}\n" for box in hosts.values()]
    return "".join(config), "".join(known)
