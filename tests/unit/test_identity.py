"""What a node gets at boot; the texts themselves are in the golden tests."""

import os
import pwd
import shutil
from pathlib import Path

import pytest
from support import DATA, PROJECT

from orchestrator.identity import HOST_KEY, boot_files, hosts, node_files, principals
from orchestrator.profile import load
from orchestrator.run import run
from orchestrator.trust import open_trust

PROFILE = DATA / "golden/two-networks/profile.yml"
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def test_sshd_accepts_what_a_node_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if SSHD is None or os.geteuid() != 0:
        pytest.skip("needs sshd (Debian: openssh-server) and root")
    try:
        pwd.getpwnam("sshd")
    except KeyError:
        pytest.skip("needs the sshd account")
    Path("/run/sshd").mkdir(exist_ok=True)
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    profile = load(PROFILE)
    trust = open_trust(profile.name)
    identity = trust.host_identity(["node-a"])
    root = tmp_path / "root"
    node = profile.compute_nodes[0]
    for path, file in boot_files(profile, node, identity, trust.user_ca_public).items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.content.replace("/etc/ssh/", f"{root}/etc/ssh/"))
        target.chmod(file.mode)
    config = root / "etc/ssh/sshd_config.d/50-orchestrate.conf"
    shown = run([SSHD, "-T", "-f", config]).out
    assert f"hostkey {root}{HOST_KEY}\n" in shown
    assert f"hostcertificate {root}{HOST_KEY}-cert.pub\n" in shown
    assert "listenaddress 192.168.10.100:22\n" in shown
    for setting in ("passwordauthentication no", "allowtcpforwarding no", "permittunnel no"):
        assert f"{setting}\n" in shown


def test_private_keys_are_private_and_not_shown() -> None:
    from orchestrator.trust import HostIdentity, Secret

    profile = load(PROFILE)
    identity = HostIdentity(Secret("hunter2"), "public", "certificate")
    files = boot_files(profile, profile.control, identity, "ca")
    assert files[HOST_KEY].mode == 0o600
    assert files[HOST_KEY].content == "hunter2"
    assert "hunter2" not in repr(files)
    assert all(file.mode == 0o644 for path, file in files.items() if path != HOST_KEY)


def test_a_name_with_an_underscore_gives_a_host_name_that_systemd_takes() -> None:
    """systemd would drop the underscore, and nspawn refuse it; SSH and people use the name."""
    profile = load(PROJECT / "profiles/sim.yml")
    control = profile.control.model_copy(update={"name": "control_0_1"})
    profile = profile.model_copy(update={"control": control})
    assert node_files(profile, control, "key")["/etc/hostname"].content == "control-0-1\n"
    for node in profile.nodes:
        assert "10.77.0.1 control_0_1 control-0-1\n" in hosts(profile, node)
    assert principals(control)[0] == "control_0_1"
