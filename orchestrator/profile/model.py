"""What a profile says. The field descriptions become the JSON schema and the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from orchestrator.profile.bench import Bench
from orchestrator.profile.hardware import Hardware
from orchestrator.profile.links import Bond, Vlan
from orchestrator.profile.power import Power
from orchestrator.profile.section import Section, WholeFile
from orchestrator.profile.services import services
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

    subnet: Subnet = Field(description="Its address range, as ADDRESS/BITS.")
    gateway: Address | None = Field(
        default=None,
        description="The router to the outside: an address that no node has. Used on the network "
        "that `boot.nat` names.",
    )
    mtu: Mtu | None = Field(
        default=None,
        description="The MTU of every link on it, in bytes. Default: the driver's own.",
    )
    carries: Name | None = Field(
        default=None,
        description="For a network of exactly two nodes: another network (a key of `networks`) "
        "whose traffic between them uses this one. Each node gets a route to the "
        "other's address there. While the link is down the route is gone, and the "
        "traffic uses its own network.",
    )


class Loaders(Section):
    """The iPXE loader for each kind of firmware: a file of the image's `loaders/`."""

    bios: BiosLoader = Field(
        default="undionly.kpxe",
        description="For legacy BIOS: iPXE with the network card's own driver.",
    )
    uefi: UefiLoader = Field(
        default="ipxe.efi",
        description="For UEFI: `ipxe.efi` has its own drivers. `snponly.efi` uses the firmware's, "
        "for cards that `ipxe.efi` does not support.",
    )


class Boot(Section):
    """How compute nodes boot."""

    network: Name = Field(description="The network (a key of `networks`) that they PXE boot from.")
    dhcp: Literal["authoritative", "proxy", "off"] = Field(
        default="authoritative",
        description="The DHCP mode. `authoritative`: the control node is the only DHCP server. "
        "`proxy`: another server assigns addresses, and the control node adds the boot "
        "options. `off`: another server does both, configured as `orchestrate netboot "
        "options` prints.",
    )
    http_port: HighPort = Field(
        default=8081,
        description="The HTTP port on which the control node (and, with `peers`, each node that is "
        "up) serves images.",
    )
    loaders: Loaders = Field(default=Loaders(), description=Loaders.__doc__)
    secure: Literal[True, False, "own"] = Field(
        default=False,
        description="UEFI nodes boot with Secure Boot. `true`: shim, GRUB and kernel, signed by "
        "Microsoft and Debian, over TFTP as that GRUB has no HTTP. `own`: one image per node that "
        "your own key signs (`orchestrate trust secure-boot`). BIOS nodes still load iPXE.",
    )
    consoles: tuple[KernelWord, ...] = Field(
        default=("tty0", "ttyS0,115200"),
        description="Values of the kernel's `console=`, in order. The last one is `/dev/console`.",
    )
    kernel_args: tuple[KernelWord, ...] = Field(
        default=(), description="Further arguments of the kernel's command line."
    )
    nat: Name | None = Field(
        default=None,
        description="The network through which nodes reach the outside. The control node needs a "
        "link on it and forwards (NAT) the traffic of the boot network. Default: nodes "
        "have no access to the outside.",
    )
    dns: tuple[Address, ...] = Field(
        default=(),
        max_length=3,
        description="The DNS servers that nodes ask, in order: in a network of theirs, or outside "
        "with `nat`. Default: none. Nodes know each other without one.",
    )
    peers: bool = Field(
        default=False,
        description="Nodes that are up also serve the image to booting nodes.",
    )
    late_layers: tuple[Name, ...] = Field(
        default=("python",),
        description="Image layers that a node fetches after its system has started, one after the "
        "other. The node answers over SSH before that; services that need a late layer "
        "wait for it. Only a layer with a directory of its own can be late. `[]`: the "
        "node waits for all layers before it starts.",
    )


class Link(Section):
    """A node's link to a network."""

    interface: Interface = Field(
        description="Its network interface, as the node's kernel names it (`ip link`)."
    )
    mac: Mac = Field(
        default="",
        description="Its MAC address. A compute node needs it on the boot network. Elsewhere it is "
        "optional, and the interface name identifies the link.",
    )
    address: Address = Field(description="Its IPv4 address, inside the network's subnet.")
    shared: bool = Field(
        default=False,
        description="For the control node with `machines: real`: the host keeps the card, and the "
        "control node gets a MACVLAN on it. Its `mac` must differ from the card's; "
        "without one, it is generated. Default: the control node has the card to itself"
        " until `down`.",
    )
    vlan: Vlan | None = Field(
        default=None,
        description="For a compute node: the link is a VLAN on another interface. `interface` is "
        "the name that it gets. The node makes it at its next boot.",
    )
    bond: Bond | None = Field(
        default=None,
        description="For a compute node: the link is several cards together. `interface` is the "
        "name that it gets. The node makes it at its next boot.",
    )


class Node(Section):
    """A machine."""

    name: HostName = Field(
        description="Its unique name. `_` becomes `-` in the host name: systemd rejects "
        "underscores."
    )
    accelerators: int = Field(
        default=0,
        ge=0,
        le=64,
        description='The number of accelerators that vLLM may use here (Ray counts them as "GPU"). '
        "0 on the control node.",
    )
    loader: UefiLoader | None = Field(
        default=None,
        description="For a compute node: the loader of its UEFI firmware, instead of "
        "`boot.loaders.uefi`.",
    )
    power: Power | None = Field(
        default=None,
        description="For a compute node: how to switch it on and off. Replaces the whole `power` "
        "section of the profile.",
    )
    hardware: Name | None = Field(
        default=None,
        description="The hardware to check for: a key of `hardware`. Default: `verify` does not "
        "check its hardware.",
    )
    links: dict[Name, Link] = Field(
        min_length=1, description="Links by network (a key of `networks`)."
    )

    @property
    def host_name(self) -> str:
        """Its name as the machine knows it: systemd drops underscores from host names."""
        return self.name.replace("_", "-")


class Account(Section):
    """A person's or a service's account."""

    name: AccountName = Field(description="The login name.")
    uid: int = Field(
        ge=1000,
        le=60000,
        description="The user id, the same on every node. Its group has the same number.",
    )
    keys: tuple[PublicKey, ...] = Field(
        default=(), description="Public SSH keys that may log in: lines of `.pub` files."
    )


class Users(Section):
    """The accounts on every node."""

    service: AccountName = Field(description="The account that Ray and vLLM run as.")
    accounts: tuple[Account, ...] = Field(
        min_length=1, description="All accounts, including the service account."
    )


class Ray(Section):
    """Ray: the head on the control node, a worker on each compute node."""

    network: Name = Field(
        description="The network (a key of `networks`) for Ray's traffic. Every node has a link on "
        "it, including the control node."
    )
    port: HighPort = Field(description="The port of the Ray head on the control node.")
    dashboard_port: HighPort = Field(
        description="The port of Ray's dashboard and job API on the control node."
    )
    object_store_memory: ObjectStoreSize = Field(
        description="Size of Ray's shared memory on each node, 75MiB or more."
    )
    env: Environment = Field(
        default={},
        description="Environment variables for Ray and the vLLM workers in it. Placeholders: "
        "`{interface}`, `{address}` and `{mac}` of the node's link on `ray.network`; "
        "`{NETWORK.interface}` etc. of its link on NETWORK. A node without that link "
        "does not get the variable.",
    )


class Simulation(Section):
    """Settings of QEMU machines; other machine drivers ignore them."""

    firmware: Literal["bios", "uefi"] = Field(
        default="uefi", description="The firmware of the machines."
    )
    memory: Size = Field(default=4 << 30, description="Memory of each machine.")
    cpus: int = Field(default=2, ge=1, le=256, description="CPUs of each machine.")
    accel: Literal["auto", "kvm", "tcg"] = Field(
        default="auto",
        description="The accelerator: KVM, or QEMU's translation (TCG), several times slower. "
        "`auto`: KVM if it can run the machines' firmware and kernel. `orchestrate up "
        "--accel` overrides it.",
    )
    cache_disk: Size | None = Field(
        default=None,
        description="Size of the disk on which each machine caches layers for its next boot. "
        "Default: no disk; each boot fetches the layers over the network.",
    )


class ControlHost(Section):
    """The computer on which `orchestrate` runs, if it is not your own."""

    ssh: Destination | None = Field(
        default=None,
        description="The SSH destination: USER@HOST, or a name of `~/.ssh/config`. Default: the "
        "control node's name.",
    )
    path: RemotePath = Field(
        default="orchestrate",
        description="The directory of the checkout there: relative to the home directory, or "
        "absolute.",
    )


class Profile(WholeFile):
    """A cluster: its machines, their networks, and what it serves."""

    name: Name = Field(description="The profile's name: `profiles/NAME.yml`.")
    image: Name = Field(description="The image that every node boots: a directory of `images/`.")
    machines: Name = Field(
        description="The machine driver: `nspawn` (containers on this machine), `qemu` (QEMU "
        "machines) or `real` (machines that `power` switches on). The control node is "
        "always a container. `existing`: a cluster that others run, with other keys (Attached)."
    )
    networks: dict[Name, Network] = Field(min_length=1, description="The networks, by name.")
    boot: Boot = Field(description=Boot.__doc__)
    control: Node = Field(
        description="The control node: it boots and configures the others, and serves the endpoint."
    )
    control_host: ControlHost | None = Field(
        default=None,
        description="The control host. With it, commands for the cluster, its images or models sync"
        " the checkout there and run there over SSH. Without it they run here, unless"
        " `--on-control` is given.",
    )
    accept_root_on_host: bool = Field(
        default=False,
        description="With `machines: real`, where the kernel cannot give the control node's "
        "container a user namespace: accept that its root is root on the host. Default: refuse.",
    )
    compute_nodes: tuple[Node, ...] = Field(
        min_length=1, description="The compute nodes, in order. vLLM's server runs on the first."
    )
    power: Power = Field(
        default=Power(),
        description="How to switch compute nodes on and off, unless a node has its own `power`. "
        "Applies only to `machines: real`.",
    )
    users: Users = Field(description=Users.__doc__)
    sysctls: dict[SysctlName, SysctlValue] = Field(
        default={},
        description="Kernel settings of every node, such as `net.core.rmem_max: 67108864`. A "
        "removed setting stays until the node's next boot. Containers may only set "
        "those of `net`.",
    )
    ray: Ray = Field(description=Ray.__doc__)
    models: dict[Name, HubModel] = Field(
        default={},
        description="Models of the Hugging Face hub, by names of your choice. `serving.model` can "
        "use these names, and those of the checkout's `models/`.",
    )
    serving: Serving = Field(description=Serving.__doc__)
    hardware: dict[Name, Hardware] = Field(
        default={},
        description="Kinds of machines, by names of your choice, and what each must have. A node's "
        "`hardware` names its kind.",
    )
    verification: Verification = Field(default=Verification(), description=Verification.__doc__)
    bench: Bench = Field(default=Bench(), description=Bench.__doc__)
    simulation: Simulation = Field(default=Simulation(), description=Simulation.__doc__)

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
        """The compute node that the vLLM server runs on: the first copy's."""
        return self.compute_nodes[0]

    @property
    def services(self) -> tuple[Profile, ...]:
        """A profile for each model (services.py)."""
        return services(self)

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

    def serving_env(self, node: Node | None = None) -> dict[str, str]:
        """The environment of vLLM on ``node`` (the first server's): ``ray.env`` of that node, then
        ``serving.env``."""
        node = node or self.server
        return self.ray_env(node) | self._expand(self.serving.env, node)

    def _expand(self, env: Mapping[str, str], node: Node) -> dict[str, str]:
        def value(match: re.Match[str]) -> str:
            return str(getattr(node.links[match[1] or self.ray.network], match[2]))

        def has_links(text: str) -> bool:
            networks = {match[1] or self.ray.network for match in PLACEHOLDER.finditer(text)}
            return networks <= set(node.links)

        return {name: PLACEHOLDER.sub(value, text) for name, text in env.items() if has_links(text)}
