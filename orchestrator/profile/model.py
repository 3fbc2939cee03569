"""What a profile says. The field descriptions become the JSON schema and the reference."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from orchestrator.core.source import YamlSource
from orchestrator.profile.bench import Bench
from orchestrator.profile.hardware import Hardware
from orchestrator.profile.power import Power
from orchestrator.profile.section import Section
from orchestrator.profile.serving import HubModel, Serving
from orchestrator.profile.types import (
    AccountName,
    Address,
    BiosLoader,
    Destination,
    Environment,
    HighPort,
    HostName,
    Interface,
    KernelWord,
    Mac,
    Mtu,
    Name,
    ObjectStoreSize,
    PublicKey,
    RemotePath,
    Size,
    Subnet,
    SysctlName,
    SysctlValue,
    UefiLoader,
)
from orchestrator.profile.verification import Verification

#: A placeholder of an environment variable: {interface} or {NETWORK.interface}.
PLACEHOLDER = re.compile(r"\{(?:([A-Za-z0-9_-][A-Za-z0-9._-]*)\.)?([A-Za-z0-9_-]+)\}")
#: What a placeholder can name.
LINK_KEYS = ("address", "interface", "mac")


class Network(Section):
    """A network that nodes have links on."""

    subnet: Subnet = Field(description="Its addresses, as ADDRESS/BITS.")
    gateway: Address | None = Field(
        default=None,
        description="What leads outside from it: an address of none of the nodes. Used on the "
        "network that `boot.nat` names.",
    )
    mtu: Mtu | None = Field(
        default=None,
        description="The largest packet, in bytes, of every link on it. Not set: the drivers' own.",
    )
    carries: Name | None = Field(
        default=None,
        description="Of a network of just two nodes: another network (a key of `networks`) whose "
        "traffic between them goes over this one. Each gets a route to the other's address there. "
        "While the link is down there is no route, and the traffic goes its own way.",
    )


class Loaders(Section):
    """What firmware is given to load, by its kind: iPXE, as a file of the image's `loaders/`."""

    bios: BiosLoader = Field(
        default="undionly.kpxe",
        description="For legacy BIOS: iPXE that uses the card's own driver.",
    )
    uefi: UefiLoader = Field(
        default="ipxe.efi",
        description="For UEFI: `ipxe.efi` with drivers of its own, or `snponly.efi` with the "
        "firmware's, where the first does not know the card.",
    )


class Boot(Section):
    """How compute nodes boot."""

    network: Name = Field(description="The network (a key of `networks`) that they PXE boot from.")
    dhcp: Literal["authoritative", "proxy", "off"] = Field(
        default="authoritative",
        description="Who gives nodes their addresses on it. `authoritative`: the control node, "
        "and nobody else. `proxy`: another server does, and the control node adds what is needed "
        "to boot. `off`: another server does both, set up as `orchestrate netboot options` says.",
    )
    http_port: HighPort = Field(
        default=8081,
        description="Where the control node (and, with `peers`, each node that is up) gives "
        "images over HTTP.",
    )
    loaders: Loaders = Field(default=Loaders(), description=Loaders.__doc__)
    secure: bool = Field(
        default=False,
        description="UEFI boots by Secure Boot's chain: shim, then GRUB, then the kernel, each "
        "signed, and all by TFTP, since the signed GRUB has no HTTP. BIOS has no such chain, and "
        "loads iPXE as ever.",
    )
    consoles: tuple[KernelWord, ...] = Field(
        default=("tty0", "ttyS0,115200"),
        description="Values of the kernel's `console=`, in order; the last one is /dev/console.",
    )
    kernel_args: tuple[KernelWord, ...] = Field(
        default=(), description="Further words of the kernel's command line."
    )
    nat: Name | None = Field(
        default=None,
        description="The network that nodes reach the outside through: the control node has a "
        "link there, and hands on what comes from the boot network. Not set: they do not.",
    )
    peers: bool = Field(
        default=False,
        description="Nodes that are up also give the image to those that boot.",
    )
    late_layers: tuple[Name, ...] = Field(
        default=("python",),
        description="Layers of the image that a node fetches after its system has started, one "
        "after the other: it answers over SSH before they are there, and what needs one waits for "
        "it. Only a layer that lies below a directory of its own can be late. `[]`: the node "
        "starts when all layers are there.",
    )


class Link(Section):
    """A node's place on a network."""

    interface: Interface = Field(
        description="Its network interface, as the node's kernel names it (`ip link`)."
    )
    mac: Mac = Field(
        default="",
        description="Its hardware address. A compute node needs one on the boot network; "
        "elsewhere it may be left out, and the link is found by its interface.",
    )
    address: Address = Field(description="Its IPv4 address, inside the network's subnet.")
    shared: bool = Field(
        default=False,
        description="Of the control node, with `machines: real`: the card stays the host's, and "
        "the control node has a MACVLAN on it, with `mac` (another one than the card's) or one "
        "that is made up. Not set: the card is the control node's alone until `down`.",
    )


class Node(Section):
    """A machine."""

    name: HostName = Field(
        description="Its name, different from every other node's. The machine's host name has `-` "
        "for `_`, which systemd takes in none."
    )
    accelerators: int = Field(
        default=0,
        ge=0,
        le=64,
        description='How many accelerators vLLM may use here: what Ray counts as "GPU". '
        "0 on the control node.",
    )
    loader: UefiLoader | None = Field(
        default=None,
        description="Of a compute node: what its UEFI firmware is given to load, in place of "
        "`boot.loaders.uefi`.",
    )
    power: Power | None = Field(
        default=None,
        description="Of a compute node: how it is switched on and off, in place of the profile's "
        "`power`, all of it.",
    )
    hardware: Name | None = Field(
        default=None,
        description="What it has to have: a key of `hardware`. Not set: `verify` does not look.",
    )
    links: dict[Name, Link] = Field(
        min_length=1, description="By network: a key of `networks`, then the link."
    )

    @property
    def host_name(self) -> str:
        """Its name as the machine knows it: systemd drops underscores from host names."""
        return self.name.replace("_", "-")


class Account(Section):
    """A person's or a service's account."""

    name: AccountName = Field(description="The login name.")
    uid: int = Field(
        ge=1000, le=60000, description="Its number, the same on every node; its group has it too."
    )
    keys: tuple[PublicKey, ...] = Field(
        default=(), description="Public SSH keys that may log in: lines of `.pub` files."
    )


class Users(Section):
    """The accounts that are made on every node."""

    service: AccountName = Field(description="The account that Ray and vLLM run as.")
    accounts: tuple[Account, ...] = Field(min_length=1, description="All accounts, that one too.")


class Ray(Section):
    """Ray: the head on the control node, a worker on each compute node."""

    network: Name = Field(
        description="The network (a key of `networks`) that Ray talks over. Every node has a "
        "link on it, the control node too."
    )
    port: HighPort = Field(description="Where the head listens, on the control node.")
    dashboard_port: HighPort = Field(
        description="Ray's dashboard and job API, on the control node."
    )
    object_store_memory: ObjectStoreSize = Field(
        description="Ray's shared memory on each node, 75MiB or more."
    )
    env: Environment = Field(
        default={},
        description="Variables for Ray and the workers that vLLM starts in it. `{interface}`, "
        "`{address}` and `{mac}` become those of the node's link on `ray.network`, "
        "`{NETWORK.interface}` and so on those of its link on NETWORK; on a node that has no "
        "link there the variable is left out.",
    )


class Simulation(Section):
    """Machines that QEMU simulates; other drivers do not read it."""

    firmware: Literal["bios", "uefi"] = Field(default="uefi", description="What they start with.")
    memory: Size = Field(default=4 << 30, description="Memory of each machine.")
    cpus: int = Field(default=2, ge=1, le=256, description="Processors of each machine.")
    accel: Literal["auto", "kvm", "tcg"] = Field(
        default="auto",
        description="What runs their instructions: KVM, or QEMU's translation (TCG), several "
        "times slower. `auto`: KVM where it runs the machines' firmware and kernel. "
        "`orchestrate up --accel` takes its place.",
    )
    cache_disk: Size | None = Field(
        default=None,
        description="Size of a disk where each machine keeps layers for its next boot; without "
        "it they come over the network each time.",
    )


class ControlHost(Section):
    """The computer that `orchestrate` runs on, where that is another one than yours."""

    ssh: Destination | None = Field(
        default=None,
        description="How your ssh reaches it: USER@HOST, or a name of ~/.ssh/config. Without it, "
        "the control node's name.",
    )
    path: RemotePath = Field(
        default="orchestrate",
        description="Where the checkout goes there; below the home directory, or absolute.",
    )


class Profile(Section):
    """A cluster: its machines, their networks, and what it serves."""

    _source: YamlSource = PrivateAttr(default=YamlSource(Path()))

    name: Name = Field(description="The profile's name: `profiles/NAME.yml`.")
    image: Name = Field(description="The image that every node boots: a directory of `images/`.")
    machines: Name = Field(
        description="What nodes are: `nspawn` (containers on this machine), `qemu` (QEMU machines) "
        "or `real` (machines that `power` switches on). The control node is always a container."
    )
    networks: dict[Name, Network] = Field(min_length=1, description="The networks, by name.")
    boot: Boot = Field(description=Boot.__doc__)
    control: Node = Field(description="The control node: it boots, configures and fronts the rest.")
    control_host: ControlHost | None = Field(
        default=None,
        description="Where commands run. With it, those that concern the cluster, its images or "
        "models are run there over SSH, after a sync; without it here, and there with "
        "`--on-control`.",
    )
    compute_nodes: tuple[Node, ...] = Field(
        min_length=1, description="The compute nodes, in order; vLLM's server runs on the first."
    )
    power: Power = Field(
        default=Power(),
        description="How compute nodes are switched on and off, where a node does not say it "
        "itself. Only `machines: real` reads it.",
    )
    users: Users = Field(description=Users.__doc__)
    sysctls: dict[SysctlName, SysctlValue] = Field(
        default={},
        description="Kernel settings of every node, like `net.core.rmem_max: 67108864`. One that "
        "is taken out stays until the node's next boot. Containers may only set those of `net`.",
    )
    ray: Ray = Field(description=Ray.__doc__)
    models: dict[Name, HubModel] = Field(
        default={},
        description="Models of the Hugging Face hub, by names of your choice: what "
        "`serving.model` can name beside those of the checkout.",
    )
    serving: Serving = Field(description=Serving.__doc__)
    hardware: dict[Name, Hardware] = Field(
        default={},
        description="Kinds of machines, by names of your choice: what each has to have. A node "
        "names its own.",
    )
    verification: Verification = Field(default=Verification(), description=Verification.__doc__)
    bench: Bench = Field(default=Bench(), description=Bench.__doc__)
    simulation: Simulation = Field(default=Simulation(), description=Simulation.__doc__)

    @property
    def path(self) -> Path:
        """The file that this profile came from."""
        return self._source.path

    @property
    def sha256(self) -> str:
        """Of the file as it is now: two commands that name the same one mean the same cluster."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def where(self, *loc: str | int) -> str:
        """``profiles/x.yml:12: serving.port``, to begin a message about that key with."""
        return self._source.where(loc)

    @property
    def host(self) -> ControlHost:
        """Where the control node's container runs, as seen from elsewhere."""
        return self.control_host or ControlHost()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The control node, then the compute nodes."""
        return (self.control, *self.compute_nodes)

    @property
    def server(self) -> Node:
        """The compute node that the vLLM server runs on."""
        return self.compute_nodes[0]

    def is_control(self, node: Node) -> bool:
        return node.name == self.control.name

    def power_of(self, node: Node) -> Power:
        """How a compute node is switched on and off."""
        return node.power or self.power

    def boot_link(self, node: Node) -> Link:
        """The node's link on the network that it boots from."""
        return node.links[self.boot.network]

    def loader(self, node: Node) -> str:
        """What the node's UEFI firmware is given to load."""
        return node.loader or self.boot.loaders.uefi

    def gateway(self, node: Node, network: str) -> str | None:
        """What leads the node outside by that network; None where its way is another one."""
        if not self.is_control(node):
            control = self.boot_link(self.control).address
            return str(control) if network == self.boot.network else None
        outside = self.networks[network].gateway
        return str(outside) if network == self.boot.nat and outside else None

    @property
    def boot_server(self) -> str:
        """ADDRESS:PORT where the control node gives boot files over HTTP."""
        return f"{self.boot_link(self.control).address}:{self.boot.http_port}"

    def ray_address(self, node: Node) -> str:
        """The node's address on Ray's network."""
        return str(node.links[self.ray.network].address)

    def ray_env(self, node: Node) -> dict[str, str]:
        """The environment that Ray is started with on ``node``: ``ray.env`` with its links."""
        return self._expand(self.ray.env, node)

    def serving_env(self) -> dict[str, str]:
        """The environment of the vLLM server: ``ray.env`` of its node, then ``serving.env``."""
        return self.ray_env(self.server) | self._expand(self.serving.env, self.server)

    def _expand(self, env: Mapping[str, str], node: Node) -> dict[str, str]:
        def value(match: re.Match[str]) -> str:
            return str(getattr(node.links[match[1] or self.ray.network], match[2]))

        def has_links(text: str) -> bool:
            networks = {match[1] or self.ray.network for match in PLACEHOLDER.finditer(text)}
            return networks <= set(node.links)

        return {name: PLACEHOLDER.sub(value, text) for name, text in env.items() if has_links(text)}

    def document(self) -> dict[str, Any]:
        """The profile as JSON types, with its defaults filled in."""
        return self.model_dump(mode="json")
