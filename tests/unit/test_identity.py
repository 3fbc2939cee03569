"""What a node gets at boot; the texts themselves are in the golden tests."""

from support import DATA, PROJECT

from orchestrator.models.profiles import load
from orchestrator.provision.identity import HOST_KEY, boot_files, hosts, node_files, principals

PROFILE = DATA / "golden/two-networks/profile.yml"


def test_private_keys_are_private_and_not_shown() -> None:
    from orchestrator.node.trust import HostIdentity, Secret

    profile = load(PROFILE)
    identity = HostIdentity(Secret("hunter2"), "public", "certificate")
    files = boot_files(profile, profile.control, identity, "ca")
    assert files[HOST_KEY].mode == 0o600
    assert files[HOST_KEY].content == "hunter2"
    assert "hunter2" not in repr(files)
    assert len(files) > 1
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
