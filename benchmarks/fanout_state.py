"""The state that all tools of benchmarks/fanout.py bring about, in each one's own words.

A hosts file, a user with a key, three files from templates, two units, a sysctl. ``change`` is a
number in one of the templates: another one is one change on each host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.node.agent_leaving import MEMORY
from orchestrator.node.resources import Directory, File, Resource, Step, Sysctl, User, service
from orchestrator.node.state import NodeState

USER, UID = "bench", 2001
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJlbmNobWFya2JlbmNobWFya2JlbmNobWFya2Jl bench@laptop"
ETC = "/etc/bench"
HOSTS = f"{ETC}/hosts"
CONFIGS = ("a", "b", "c")
UNITS = ("bench-a.service", "bench-b.service")
KEYS = f"/etc/ssh/authorized_keys.d/{USER}"
SYSCTL = ("net.ipv4.tcp_fin_timeout", "31")
PYTHON = "/opt/venvs/orchestrate/bin/python"

#: What undoes it, on a host.
RESET = (
    f"systemctl disable --now {' '.join(UNITS)}; userdel --remove {USER};"
    f" rm -rf {ETC} {KEYS} /etc/sysctl.d/90-bench.conf /etc/systemd/system/bench-*.service"
    f" /{MEMORY};"
    f" systemctl daemon-reload; sysctl -qw {SYSCTL[0]}=60; true"
)
#: What is on a host, as text that is the same after each tool.
SEEN = (
    f"cat {HOSTS} {' '.join(f'{ETC}/{name}.conf' for name in CONFIGS)} | sha256sum; id -u {USER};"
    f" cat {KEYS}; stat -c '%a %U' {KEYS};"
    f" systemctl is-active {' '.join(UNITS)}; sysctl -n {SYSCTL[0]}"
)


@dataclass(frozen=True)
class Host:
    """A host: its name, and where its SSH is."""

    name: str
    address: str


def hosts_text(hosts: Sequence[Host]) -> str:
    return "".join(f"{host.address} {host.name}\n" for host in hosts)


def config(host: Host, name: str, change: int) -> str:
    return f"# {name}\nname = {host.name}\naddress = {host.address}\nport = {9000 + change}\n"


def unit(name: str) -> str:
    return f"[Unit]\nDescription={name}\n[Service]\nExecStart=/bin/sleep infinity\n"


def ours(host: Host, hosts: Sequence[Host], change: int) -> NodeState:
    """As a desired state."""
    items = list(_resources(host, hosts, change))
    kinds = {Sysctl: "sysctls", User: "users", Directory: "directories", File: "files"}
    parts = {
        name: tuple(item for item in items if isinstance(item, kind))
        for kind, name in kinds.items()
    }
    units = tuple(item for item in items if not isinstance(item, tuple(kinds)))
    return NodeState(host.name, units=units, **parts)  # type: ignore[arg-type]


def _resources(host: Host, hosts: Sequence[Host], change: int) -> Iterator[Resource]:
    yield Sysctl(Step.BASE, *SYSCTL)
    yield User(Step.BASE, USER, UID)
    yield Directory(Step.BASE, str(Path(KEYS).parent))
    yield File(Step.BASE, KEYS, f"{KEY}\n")
    yield File(Step.BASE, HOSTS, hosts_text(hosts))
    for name in CONFIGS:
        yield File(Step.BASE, f"{ETC}/{name}.conf", config(host, name, change * (name == "b")))
    for name in UNITS:
        yield from service(Step.BASE, name, {f"/etc/systemd/system/{name}": unit(name)})


def expected(host: Host, hosts: Sequence[Host], change: int) -> str:
    """What SEEN prints on a host that is as it should be."""
    configs = [config(host, name, change * (name == "b")) for name in CONFIGS]
    digest = hashlib.sha256("".join([hosts_text(hosts), *configs]).encode()).hexdigest()
    active = "active " * len(UNITS)
    return f"{digest} - {UID} {KEY} 644 root {active} {SYSCTL[1]}"


def write_templates(home: Path, hosts: Sequence[Host]) -> None:
    """What both peers read: templates, and files that are the same on every host."""
    for name in CONFIGS:
        port = "{{ 9000 + change | int }}" if name == "b" else "9000"
        text = f"# {name}\nname = {{{{ host_name }}}}\naddress = {{{{ host_address }}}}\n"
        (home / f"{name}.conf.j2").write_text(f"{text}port = {port}\n")
    (home / "hosts").write_text(hosts_text(hosts))
    for name in UNITS:
        (home / name).write_text(unit(name))


def word(unit: str) -> str:
    """A unit's name as a variable's."""
    return unit.partition(".")[0].replace("-", "_")


def write_ansible(home: Path, hosts: Sequence[Host], ssh: dict[str, str]) -> None:
    """Inventory, settings and playbook. ``ssh``: by host, the words of its ssh."""
    inventory = {
        "all": {
            "hosts": {
                host.name: {
                    "ansible_host": host.address,
                    "ansible_user": "root",
                    "ansible_python_interpreter": PYTHON,
                    "ansible_ssh_common_args": ssh[host.name],
                    "host_name": host.name,
                    "host_address": host.address,
                }
                for host in hosts
            }
        }
    }
    (home / "inventory.json").write_text(json.dumps(inventory))
    (home / "ansible.cfg").write_text(
        f"[defaults]\ninventory = inventory.json\nforks = {len(hosts)}\nstrategy = free\n"
        "gathering = explicit\nretry_files_enabled = false\nstdout_callback = minimal\n"
        "display_ok_hosts = false\ninterpreter_python = auto_silent\n"
        "[ssh_connection]\npipelining = true\nssh_args =\n"
    )
    tasks = [
        {"ansible.builtin.user": {"name": USER, "uid": UID, "shell": "/bin/bash"}},
        {"ansible.builtin.file": {"path": str(Path(KEYS).parent), "state": "directory",
                                  "owner": "root", "group": "root", "mode": "0755"}},
        {"ansible.builtin.copy": {"content": f"{KEY}\n", "mode": "0644", "owner": "root",
                                  "group": "root", "dest": KEYS}},
        {"ansible.builtin.file": {"path": ETC, "state": "directory"}},
        {"ansible.builtin.copy": {"src": str(home / "hosts"), "dest": HOSTS}},
        *({"ansible.builtin.template": {"src": str(home / f"{name}.conf.j2"),
                                        "dest": f"{ETC}/{name}.conf"}} for name in CONFIGS),
        *({"ansible.builtin.copy": {"src": str(home / name), "dest": f"/etc/systemd/system/{name}"},
           "register": word(name)} for name in UNITS),
        *({"ansible.builtin.systemd_service": {"name": name, "state": "started",
                                               "daemon_reload": f"{{{{ {word(name)}.changed }}}}"}}
          for name in UNITS),
        {"ansible.builtin.copy": {"content": f"{SYSCTL[0]} = {SYSCTL[1]}\n",
                                  "dest": "/etc/sysctl.d/90-bench.conf"}, "register": "kernel"},
        {"ansible.builtin.command": {"argv": ["sysctl", "-qp", "/etc/sysctl.d/90-bench.conf"]},
         "when": "kernel.changed"},
    ]  # fmt: skip
    play = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    (home / "playbook.json").write_text(json.dumps(play))


def write_pyinfra(home: Path, hosts: Sequence[Host], key: Path, known_hosts: Path) -> None:
    """Inventory and deploy. Its SSH library knows no certificates of hosts: it gets their keys."""
    inventory = [
        (
            host.name,
            {
                "ssh_hostname": host.address,
                "ssh_user": "root",
                "ssh_key": str(key),
                "ssh_known_hosts_file": str(known_hosts),
                "ssh_strict_host_key_checking": "yes",
                "ssh_allow_agent": False,
                "ssh_look_for_keys": False,
                "host_name": host.name,
                "host_address": host.address,
            },
        )
        for host in hosts
    ]
    (home / "inventory.py").write_text(f"bench = {inventory!r}\n")
    (home / "deploy.py").write_text(PYINFRA)


PYINFRA = f"""\
import os
from io import StringIO

from pyinfra import host
from pyinfra.operations import files, server, systemd

change = int(os.environ["CHANGE"])
owned = {{"user": "root", "group": "root"}}
server.user(user={USER!r}, uid={UID}, shell="/bin/bash", ensure_home=True, create_home=True)
files.directory(path={str(Path(KEYS).parent)!r}, mode="755", **owned)
keys = StringIO({f"{KEY}{chr(10)}"!r})
files.put(src=keys, dest={KEYS!r}, mode="644", **owned)
files.directory(path={ETC!r})
files.put(src="hosts", dest={HOSTS!r})
for each in {CONFIGS!r}:
    files.template(
        src=f"{{each}}.conf.j2", dest=f"{ETC}/{{each}}.conf", change=change,
        host_name=host.data.host_name, host_address=host.data.host_address,
    )
for unit in {UNITS!r}:
    put = files.put(src=unit, dest=f"/etc/systemd/system/{{unit}}")
    systemd.service(service=unit, running=True, daemon_reload=put.will_change)
server.sysctl(
    key={SYSCTL[0]!r}, value={SYSCTL[1]}, persist=True, persist_file="/etc/sysctl.d/90-bench.conf"
)
"""
