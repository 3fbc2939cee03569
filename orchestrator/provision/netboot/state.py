"""The desired state of the netboot services: DHCP, TFTP, boot service, NAT, peer server. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.core.templating import render
from orchestrator.node.paths import ETC, FILES_ROOT, LASTING, VENV
from orchestrator.node.resources import Directory, File, Resource, Step, service
from orchestrator.node.trust import HOST_LIFETIME, Secret
from orchestrator.provision import boot_parameters
from orchestrator.provision.netboot import boot_service_file
from orchestrator.provision.netboot.dhcp import values
from orchestrator.provision.netboot.publish import CURRENT, DOCUMENT, LOADERS

if TYPE_CHECKING:
    from orchestrator.profile import Node, Profile

DHCP_UNIT = "dnsmasq.service"
BOOT_UNIT = "orchestrate-boot.service"
NAT_UNIT = "orchestrate-nat.service"
#: The boot service's user; the images have it (system.users in image.yml).
BOOT_USER = "orchestrate-boot"
#: The only group that may use its socket: Debian's nginx, which passes on the client's address.
FRONT_GROUP = "www-data"
#: Debian's unit of nginx reads these.
WEB_CONFIG, WEB_PID = "/etc/nginx/nginx.conf", "/run/nginx.pid"
SOCKET = f"/run/{BOOT_USER}/http.sock"
TFTP_ROOT = f"{FILES_ROOT}/{CURRENT}/{LOADERS}"
HOST_CA = f"{ETC}/host_ca"
FILES_UNIT = "orchestrate-files.service"
#: In LASTING, which is root's: dnsmasq's file, that it opens as root; and a directory of the boot
#: service's own, where root writes nothing. EVENTS is what that service saw, a file a machine.
#: BOOTS has nonces, which are secret until they are used.
LEASES, BOOT_STATE = "dnsmasq.leases", "boot"
EVENTS, BOOTS = f"{BOOT_STATE}/events", f"{BOOT_STATE}/boots.json"
#: Where nginx logs: the journal, which is bounded.
JOURNAL = "syslog:server=unix:/dev/log,nohostname,tag=boot"
#: On a netbooted node: the directory of the layers that it fetched.
LAYERS = "/run/orchestrate/layers"
#: On a netbooted node: the units that fetch late layers; images/initrd/late.sh writes them.
LAYER_UNITS = "orchestrate-layer-*.service"


def control(profile: Profile, host_ca: Secret) -> Iterable[Resource]:
    """The control node's services for booting nodes; nginx itself is in cluster/desired.py."""
    yield Directory(Step.BASE, LASTING)
    own = f"{LASTING}/{BOOT_STATE}"
    yield Directory(Step.BASE, own, owner=BOOT_USER, group=BOOT_USER, mode="0700")
    yield from _boot_service(host_ca)
    config = f"{ETC}/dnsmasq.conf"
    files = {
        config: dnsmasq_conf(profile),
        f"/etc/systemd/system/{DHCP_UNIT}": render(DHCP_UNIT, config=config),
    }
    yield from service(Step.BASE, DHCP_UNIT, files)
    yield from _files(profile)
    if profile.boot.nat:
        yield from _nat(profile, profile.boot.nat)


def _boot_service(host_ca: Secret) -> Iterable[Resource]:
    code = f"{ETC}/boot_service.py"
    yield File(Step.BASE, HOST_CA, host_ca.reveal(), mode="0600", secret=True)
    unit = render(
        BOOT_UNIT,
        user=BOOT_USER,
        front_group=FRONT_GROUP,
        runtime=BOOT_USER,
        venv=VENV,
        code=code,
        socket=SOCKET,
        document=f"{FILES_ROOT}/{CURRENT}/{DOCUMENT}",
        state=f"{LASTING}/{BOOT_STATE}",
        authority=HOST_CA,
        lifetime=int(HOST_LIFETIME.total_seconds()),
    )
    files = {code: Path(boot_service_file()).read_text(), f"/etc/systemd/system/{BOOT_UNIT}": unit}
    yield from service(Step.BASE, BOOT_UNIT, files, [HOST_CA])


def _files(profile: Profile) -> Iterable[Resource]:
    """The web server for nodes, apart from the endpoint's: neither can use up the other."""
    config = f"{ETC}/files.conf"
    text = render(
        "files.conf",
        pid="/run/orchestrate-files.pid",
        files=profile.boot_server,
        root=FILES_ROOT,
        loaders=TFTP_ROOT,
        journal=JOURNAL,
        nodes=[profile.boot_link(node).address for node in profile.nodes],
        boot_socket=SOCKET,
    )
    unit = render(FILES_UNIT, config=config)
    files = {config: text, f"/etc/systemd/system/{FILES_UNIT}": unit}
    yield Directory(Step.BASE, FILES_ROOT)
    yield from service(Step.BASE, FILES_UNIT, files)


def dnsmasq_conf(profile: Profile) -> str:
    """dnsmasq's configuration for the profile's `boot.dhcp`."""
    return render(
        "dnsmasq.conf",
        interface=profile.boot_link(profile.control).interface,
        leases=f"{LASTING}/{LEASES}",
        tftp_root=TFTP_ROOT,
        dhcp=profile.boot.dhcp,
        subnet=profile.networks[profile.boot.network].subnet,
        ula=boot_parameters.ula(profile),
        **values(profile, http=boot_parameters.boots_over_http(profile)),
    )


def _nat(profile: Profile, outside: str) -> Iterable[Resource]:
    rules = f"{ETC}/nat.nft"
    control_links = profile.control.links
    text = render(
        "nat.nft",
        inside=profile.boot_link(profile.control).interface,
        outside=control_links[outside].interface,
        subnet=profile.networks[profile.boot.network].subnet,
    )
    files = {rules: text, f"/etc/systemd/system/{NAT_UNIT}": render(NAT_UNIT, rules=rules)}
    yield from service(Step.BASE, NAT_UNIT, files)


def compute(profile: Profile, node: Node, web_unit: str) -> Iterable[Resource]:
    """With `boot.peers`: a web server on a compute node that offers its layers to others."""
    if profile.boot.peers:
        address = f"{profile.boot_link(node).address}:{profile.boot.http_port}"
        text = render("peer.conf", pid=WEB_PID, address=address, layers=LAYERS)
        yield from service(Step.BASE, web_unit, {WEB_CONFIG: text})
