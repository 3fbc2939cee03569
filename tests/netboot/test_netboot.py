"""Real firmware, from power to SSH, in this order: the ways that lead there, then faults."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import image_files
import netboot_harness
import pytest
from netboot_harness import HTTP_FIRST, MINIMAL, NAME, OUTSIDE, Booting, Net

from orchestrator import paths
from orchestrator.bench.sample import sampling, series
from orchestrator.image import store
from orchestrator.machines import netns
from orchestrator.machines.firmware import BIOS, SECURE, UEFI, Firmware
from orchestrator.machines.processes import Process
from orchestrator.machines.qemu import Hardware, make_disk
from orchestrator.node_paths import CACHE, MODELS
from orchestrator.state import MODELS_UNIT, WORKER_UNIT
from orchestrator.templating import render

pytestmark = pytest.mark.netboot

STRANGE_MAC = "02:00:0a:4d:00:99"
#: An image of a newer Debian than the control node's.
REAL = "pxe-0.1"
#: Long enough for a machine that would go on, to have done so.
STAYS = 20.0


# Ways that lead to SSH.


def test_uefi_over_tftp(net: Net) -> None:
    booting = net.boot()
    booting.sees("Start PXE over IPv4")
    booting.sees("NBP filename is")
    for step in ("kernel", "network", "manifest", "layer:base", "root", "identity", "switch"):
        booting.reports(step, "done")
    booting.reaches_ssh()
    assert net.on("compute0", "systemctl", "is-system-running", "--wait") == "running"
    document = net.status_says("layer:base")
    assert booting.mac in document or "compute0" in document


def test_bios(net: Net) -> None:
    booting = net.boot(firmware=BIOS)
    booting.sees("SeaBIOS")
    booting.sees("iPXE")
    booting.reaches_ssh()


def test_uefi_over_http(net: Net) -> None:
    booting = net.boot(extra=HTTP_FIRST)
    booting.sees("Start HTTP Boot over IPv4")
    booting.sees(r"URI: http://\S+/loaders/")
    booting.reaches_ssh()
    assert re.search(r'"GET", "uri": "/loaders/[^"]+\.efi"', net.requests())


def test_secure_boot(net: Net) -> None:
    with net.changed(boot={"secure": True}):
        booting = net.boot(firmware=SECURE)
        booting.sees("Secure [Bb]oot (is )?enabled")
        booting.reaches_ssh()
        lockdown = net.on("compute0", "cat", "/sys/kernel/security/lockdown")
        assert "[none]" not in lockdown


def test_secure_boot_refuses_a_changed_kernel(net: Net) -> None:
    with net.changed(boot={"secure": True}), net.damaged("kernel"):
        booting = net.boot(firmware=SECURE)
        booting.sees("bad shim signature")
        stays_without_kernel(booting)


def test_samplers_see_the_quota_of_a_service(net: Net) -> None:
    """As systemd sets one, in control groups of the new kind."""
    booting = net.boot()
    booting.reaches_ssh()
    shell(booting, f"systemd-run --unit={WORKER_UNIT} -p CPUQuota=20% sh -c 'while :; do :; done'")
    node = booting.machine.node
    with net.driver.network(), sampling(net.cluster, [node]) as heard:
        until = time.monotonic() + 120
        while len(lines := heard.lines[node.name]) < 4:
            assert time.monotonic() < until, heard
            time.sleep(0.2)
    found = {each.name: each.values for each in series({node.name: lines}, {})}
    assert max(found["quota"]) > 50


def test_two_nodes_at_once(net: Net) -> None:
    both = {name: net.boot(name) for name in ("compute0", "compute1")}
    for name, booting in both.items():
        booting.reaches_ssh(name)
    keys = {net.on(name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub") for name in both}
    assert len(keys) == len(both)


def test_an_image_for_real_machines(net: Net) -> None:
    """Another release of Debian, with a real cluster's kernel and drivers, and few of its wheels.

    The control node runs its own image still: only what it hands out is another.
    """
    net.run("image", "fetch", REAL, "--available")
    image_files.register(REAL, image_files.build(f"{REAL}.available.minimal"))
    net.run("image", "use", REAL)
    try:
        booting = net.boot()
        booting.reaches_ssh()
        assert net.on("compute0", "systemctl", "is-system-running", "--wait") == "running"
        assert 'VERSION_ID="13"' in net.on("compute0", "cat", "/etc/os-release").splitlines()
        assert net.on("compute0", "python3", "--version").startswith("Python 3.13.")
        assert net.on("compute0", "modinfo", "-n", "i915")
    finally:
        net.run("image", "use", MINIMAL)


def test_a_clock_that_is_years_ahead(net: Net) -> None:
    """sshd would take the operator's certificate for one that has ended."""

    def ahead(hardware: Hardware) -> Hardware:
        return dataclasses.replace(hardware, extra=("-rtc", "base=2033-05-18T00:00:00"))

    booting = net.boot(change=ahead)
    booting.reaches_ssh()
    assert "s off; set to the server's" in booting.console
    assert abs(int(net.on("compute0", "date", "+%s")) - time.time()) < 60


def test_a_second_nic_without_a_cable(net: Net) -> None:
    """It comes first, to the firmware and to the kernel; nobody waits for it for ever."""

    def second(hardware: Hardware) -> Hardware:
        net.switch.add_tap("loose", net.switch.bridge("cluster"))
        return dataclasses.replace(hardware, nics={"loose": STRANGE_MAC, **hardware.nics})

    booting = net.boot(change=second, extra=["-S"])
    booting.mac = net.switch.mac(net.node("compute0"), "cluster")
    booting.machine.guest.qmp("set_link", name="nic0", up=False)
    booting.machine.guest.qmp("cont")
    booting.reaches_ssh()


@pytest.mark.parametrize("firmware", [UEFI, BIOS], ids=["uefi", "bios"])
def test_proxy_beside_another_dhcp_server(net: Net, tmp_path: Path, firmware: Firmware) -> None:
    node = net.node("compute0")
    link = node.links["cluster"]
    with net.changed(boot={"dhcp": "proxy"}), net.stranger("cluster", "10.77.0.250/24") as space:
        with other_dhcp(space, tmp_path, f"{link.mac},{link.address}") as log:
            booting = net.boot(firmware=firmware)
            booting.reaches_ssh()
        assert f"DHCPACK(eth0) {link.address} {link.mac}" in log.read_text()


@contextmanager
def other_dhcp(space: str, home: Path, host: str) -> Iterator[Path]:
    """A DHCP server that knows nothing of booting, in a namespace; its log."""
    log = home / "dnsmasq.log"
    argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root"]
    argv += ["--interface=eth0", "--bind-interfaces", "--dhcp-range=10.77.0.0,static"]
    argv += [f"--dhcp-host={host}", f"--dhcp-leasefile={home / 'leases'}", "--log-facility=-"]
    with netns.entered(space), log.open("w") as stream:
        process = subprocess.Popen(argv, stdout=stream, stderr=stream)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(10)


def test_a_new_image_and_back(net: Net, tmp_path: Path) -> None:
    old = net.image_id
    current = store.built(MINIMAL)
    assert current is not None
    new = image_files.variant(current, tmp_path / "new")
    image_files.register("new", tmp_path / "new")
    try:
        net.run("image", "use", "new")
        assert net.image_id == new
        net.boot().reaches_ssh()
        net.run("image", "rollback")
        assert net.image_id == old
        net.boot().reaches_ssh()
        net.status_says("held")
    finally:
        net.run("image", "use", MINIMAL)


# The cache.


def test_cache_is_filled_used_and_checked(net: Net, tmp_path: Path) -> None:
    disk = tmp_path / "cache.raw"
    make_disk(disk, 1 << 30)

    def with_disk(hardware: Hardware) -> Hardware:
        return dataclasses.replace(hardware, disk=disk)

    def source(booting: Booting) -> str:
        return json.dumps(booting.reports("layer:base", "done"))

    booting = net.boot(change=with_disk)
    assert "http://" in source(booting)
    booting.reaches_ssh()
    power_off_in_order(booting)

    booting = net.boot(change=with_disk)
    assert "cache" in source(booting)
    booting.reaches_ssh()
    weights = models_on_disk(booting)
    shell(booting, f"echo weights >{weights}")
    power_off_in_order(booting)

    image_files.damage_in(disk, net.layer_size("base"), tmp_path / "mounted")
    booting = net.boot(change=with_disk)
    assert "http://" in source(booting)
    booting.reaches_ssh()
    power_off_in_order(booting)

    booting = net.boot(change=with_disk)  # it was put right there too
    assert "cache" in source(booting)
    booting.reaches_ssh()
    models_on_disk(booting)
    assert shell(booting, f"cat {weights}") == "weights\n"


def models_on_disk(booting: Booting) -> str:
    """Start the unit of `serving.model_cache: disk`; the path of a file of the served model."""
    unit = render(MODELS_UNIT, cache=CACHE, models=MODELS)
    shell(booting, f"cat >/run/systemd/system/{MODELS_UNIT}", unit)
    shell(booting, f"systemctl start {MODELS_UNIT} && mkdir -p {MODELS}/served")
    return f"{MODELS}/served/model.safetensors"


def shell(booting: Booting, script: str, stdin: str = "") -> str:
    with booting.net.driver.network():
        remote = booting.net.remote(booting.machine.node.name)
        return remote.run(["sh", "-c", script], stdin=stdin).out


def power_off_in_order(booting: Booting) -> None:
    booting.net.remote(booting.machine.node.name).close()
    booting.machine.power_off(120)


# Faults.


def test_the_control_node_restarts_during_a_download(net: Net) -> None:
    with net.slow("compute0", "60mbit"):
        booting = net.boot()
        booting.reports("layer:base", "start")
        net.carries("compute0", 30 << 20)
        net.driver.power_off(net.cluster.profile.control, timeout=0)
        net.serve()
    booting.reports("layer:base", "done")
    booting.reaches_ssh()
    # It went on where it was, it did not begin again.
    assert re.search(r'base\.squashfs", "status": 206', net.requests())


def test_a_layer_damaged_on_the_server(net: Net) -> None:
    with net.damaged("base.squashfs"):
        booting = net.boot()
        booting.reports("layer:base", "failed")
        booting.sees("base.*(sha256|hash|wrong|damaged|differs)")
        net.status_says("layer:base")
    booting.reports("layer:base", "done")
    booting.reaches_ssh()


def test_a_stale_image_id(net: Net) -> None:
    """The script names an image whose files are gone; they come back."""
    with net.missing("manifest.json"):
        booting = net.boot()
        booting.reports("manifest", "failed")
        booting.sees("manifest")
        net.status_says("manifest")
    booting.reaches_ssh()


def test_an_unknown_machine_gets_nothing(net: Net) -> None:
    def other_mac(hardware: Hardware) -> Hardware:
        return dataclasses.replace(hardware, nics=dict.fromkeys(hardware.nics, STRANGE_MAC))

    booting = net.boot(change=other_mac)
    booting.sees("Start PXE over IPv4")
    net.status_says(rf"mac: \\?\"{STRANGE_MAC}")
    stays_without_kernel(booting)
    assert not any(netboot_harness.tells(e, STRANGE_MAC, "identity") for e in net.events())


def stays_without_kernel(booting: Booting) -> None:
    """For a while, no kernel starts. A wait by time: nothing is there to tell of what is not."""
    with pytest.raises(AssertionError, match="Linux version"):
        booting.sees("Linux version", STAYS)


def test_identity_is_given_once_and_to_its_owner(net: Net) -> None:
    booting = net.boot()
    booting.reaches_ssh()
    nonce = re.search(r"orchestrate\.boot=(\S+)", net.on("compute0", "cat", "/proc/cmdline"))
    assert nonce is not None
    url = f"{net.server}/boot/identity?mac={booting.mac}&boot={nonce[1]}"
    link = net.node("compute0").links["cluster"]

    other = url.replace(booting.mac, STRANGE_MAC)
    with net.stranger("cluster", "10.77.0.99/24") as space:
        assert ask(space, url) == 403  # the address is not the node's
        assert ask(space, other) in (403, 404)  # nor is it one of the profile
    with net.stranger("cluster", "10.77.0.99/24", STRANGE_MAC) as space:
        assert ask(space, other) == 404
    booting.power_off()
    # Even who takes over address and hardware address gets no second one.
    with net.stranger("cluster", f"{link.address}/24", link.mac) as space:
        assert ask(space, url) == 409
        assert ask(space, url.replace(nonce[1], "0" * len(nonce[1]))) == 410
    net.status_says("handed out already")


def ask(space: str, url: str) -> int:
    """The status of an answer to a key of one's own."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43 + " stranger\n"
    request = urllib.request.Request(url, data=key.encode(), method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with netns.entered(space):
        try:
            with opener.open(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


def test_nothing_answers_on_another_network(net: Net) -> None:
    """The same questions are answered on the boot network, so that silence means something."""
    address = str(net.cluster.profile.control.links["cluster"].address)
    port = int(net.server.rpartition(":")[2])
    with net.stranger("cluster", "10.77.0.99/24") as space:
        assert answers(space, address, port) == {"dhcp", "tftp", "http"}
    with net.stranger("outside", f"{OUTSIDE['stranger']}/24") as space:
        assert answers(space, OUTSIDE["control"], port) == set()


def answers(space: str, address: str, port: int) -> set[str]:
    """Which of DHCP, TFTP and HTTP say something to a stranger."""
    found = set()
    with netns.entered(space):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            client.bind(("", 68))
            client.settimeout(5)
            client.sendto(discover("02:00:0a:4d:00:10"), ("255.255.255.255", 67))
            with suppress(TimeoutError):
                client.recv(2048)
                found.add("dhcp")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(3)
            client.sendto(b"\0\1nothing\0octet\0", (address, 69))  # an error is an answer
            with suppress(TimeoutError, ConnectionRefusedError):
                client.recv(2048)
                found.add("tftp")
        with suppress(OSError), socket.create_connection((address, port), timeout=3):
            found.add("http")
    return found


def discover(mac: str) -> bytes:
    """A DHCPDISCOVER that asks for a broadcast answer (RFC 2131)."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    head = bytes([1, 1, 6, 0]) + b"ABCD" + b"\0\0" + b"\x80\0" + b"\0" * 16
    return head + hardware.ljust(16, b"\0") + b"\0" * 192 + b"\x63\x82\x53\x63" + b"\x35\1\1\xff"


# What `up` adds, once nodes are there.


def test_nodes_reach_the_outside_and_give_layers_to_each_other(net: Net) -> None:
    outside = {"subnet": OUTSIDE["subnet"], "gateway": OUTSIDE["stranger"]}
    with net.configured(boot={"nat": "outside", "peers": True}, networks={"outside": outside}):
        # The stranger has no way to the nodes' network: answers come because of NAT.
        with net.stranger("outside", f"{OUTSIDE['stranger']}/24"):
            net.on("compute0", "ping", "-c", "1", "-W", "5", OUTSIDE["stranger"])
        booting = net.boot("compute1")
        peer = net.node("compute0").links["cluster"].address
        assert f"from http://{peer}:" in str(booting.reports("layer:base", "done"))
        booting.reaches_ssh("compute1")


# The end.


def test_down_leaves_nothing(net: Net) -> None:
    net.boot()
    process = Process(paths.cluster(NAME) / "machines/compute0/process.json")
    assert process.pid() is not None
    net.run("down")
    assert net.left() == []
    net.serve()
