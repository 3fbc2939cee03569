"""What a node gets at boot is what a real sshd takes."""

from pathlib import Path

import pytest
from support import DATA
from support.sshd import sshd_program

from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.node.trust import open_trust
from orchestrator.provision.identity import AUTHORIZED_KEYS, HOST_KEY, boot_files

PROFILE = DATA / "golden/two-networks/profile.yml"


def test_sshd_accepts_what_a_node_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = sshd_program()
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
    shown = run([program, "-T", "-f", config]).out
    assert f"hostkey {root}{HOST_KEY}\n" in shown
    assert f"hostcertificate {root}{HOST_KEY}-cert.pub\n" in shown
    assert "listenaddress 192.168.10.100:22\n" in shown
    assert f"authorizedkeysfile {root}{AUTHORIZED_KEYS}/%u\n" in shown
    for setting in ("passwordauthentication no", "allowtcpforwarding no", "permittunnel no"):
        assert f"{setting}\n" in shown
