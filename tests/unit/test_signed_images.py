"""Signed images: how they are put together, by whose key, and when they are made again."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import struct
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from support import DATA

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.image import ident
from orchestrator.models.profiles import load
from orchestrator.profile import Profile
from orchestrator.provision import boot_parameters, secure_boot
from orchestrator.provision.identity import BootFile, node_files
from orchestrator.provision.machines.firmware import SECURE, UEFI, enroll, firmware
from orchestrator.provision.netboot import dhcp, images, signed
from orchestrator.provision.netboot.images import Image, ImageChoice
from orchestrator.provision.netboot.publish import publish


def stub(sections: int = 1) -> bytes:
    """The least program that PE's tools accept: headers, and code that returns."""
    code = b"\xc3".ljust(0x200, b"\0")
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    head += struct.pack("<4s2H3I2H", b"PE\0\0", 0x8664, sections, 0, 0, 0, 240, 0x206)
    head += struct.pack("<H2x3I2I", 0x20B, len(code), 0, 0, 0x1000, 0x1000)
    head += struct.pack("<Q2I6H4I2H", 0, 0x1000, 0x200, *[0] * 6, 0, 0x2000, 0x400, 0, 10, 0)
    head += struct.pack("<4Q2I", 0, 0, 0, 0, 0, 16) + bytes(16 * 8)
    head += sections * struct.pack("<8s4I12xI", b".text", 1, 0x1000, len(code), 0x400, 0x6000_0020)
    return head.ljust(0x400, b"\0") + code


@pytest.fixture
def profile() -> Profile:
    base = load(DATA / "golden/secure/profile.yml")
    return base.model_copy(update={"boot": base.boot.model_copy(update={"secure": "own"})})


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    built = tmp_path / "built"
    (built / "loaders").mkdir(parents=True)
    (built / signed.STUB).write_bytes(stub())
    (built / "loaders/ipxe.efi").write_bytes(b"IPXE")
    (built / "kernel").write_bytes(b"KERNEL" * 1001)
    (built / "initrd").write_bytes(b"INITRD" * 1001)
    describe(built)
    return built


def describe(image: Path) -> None:
    """Write the manifest, as the builder does."""
    layers = [{"name": "base"}, {"name": "python", "mount": "/x"}]
    loaders = [described(image, path) for path in sorted((image / "loaders").iterdir())]
    parts = {name: described(image, image / name) for name in ("kernel", "initrd")}
    document = {"name": "a", "layers": layers, "loaders": loaders, **parts}
    (image / "manifest.json").write_text(json.dumps(document))


def described(image: Path, path: Path) -> dict[str, str]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": str(path.relative_to(image)), "sha256": digest}


def made(profile: Profile) -> secure_boot.SecureBootKey:
    paths.cluster(profile.name).mkdir(parents=True, exist_ok=True)
    return secure_boot.make(profile.name)


def served(profile: Profile, image: Path) -> Image:
    return images.publish(profile.name, "a", image)


def signed_for(profile: Profile, index: int = 0) -> Path:
    name = boot_parameters.signed_image(profile.compute_nodes[index])
    return paths.served(profile.name) / "netboot/loaders" / name


def verifies(program: Path, key: secure_boot.SecureBootKey) -> bool:
    argv = ["sbverify", "--cert", str(key.certificate), str(program)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_all_that_a_node_runs_is_in_it(profile: Profile, image: Path) -> None:
    files = node_files(profile, profile.compute_nodes[0], "USER CA\n")
    parts = signed.read(image, ident(image))
    program = parts.assemble("a=b c", files)
    assert signed.section(program, ".text")[:1] == b"\xc3"
    assert signed.section(program, ".cmdline") == b"a=b c"
    assert signed.section(program, ".linux") == (image / "kernel").read_bytes()
    initrd = signed.section(program, ".initrd")
    assert initrd.endswith((image / "initrd").read_bytes())
    whole = subprocess.run(
        ["cpio", "--quiet", "--extract", "--to-stdout", signed.BOOT_FILES],
        input=initrd,
        capture_output=True,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(whole.stdout)) as tar:
        unpacked = {f"/{entry.name}": tar.extractfile(entry) for entry in tar}
        texts = {path: file.read().decode() for path, file in unpacked.items() if file}
    assert texts == {path: file.content for path, file in files.items()}
    assert program == parts.assemble("a=b c", dict(reversed(files.items())))


def test_a_program_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        signed.with_sections(stub(17), {".linux": b""})


def test_an_image_from_before_there_was_a_stub_is_refused(profile: Profile, image: Path) -> None:
    made(profile)
    (image / signed.STUB).unlink()
    describe(image)
    with pytest.raises(UserError, match="cannot be signed"):
        publish(profile, ImageChoice(current=served(profile, image)), "CA")


@pytest.mark.parametrize("name", ["manifest.json", "kernel", "initrd", signed.STUB])
def test_only_the_image_that_the_id_names_is_signed(
    profile: Profile, image: Path, name: str
) -> None:
    """The served files lie where the control node's container sees them."""
    made(profile)
    chosen = served(profile, image)
    file = images.directory(profile.name, chosen.id) / name
    changed = file.read_bytes() + b" "
    file.unlink()
    file.write_bytes(changed)
    with pytest.raises(UserError, match="nothing was signed"):
        publish(profile, ImageChoice(current=chosen), "CA")
    assert not (paths.served(profile.name) / "netboot").exists()


def test_each_node_is_served_its_own(profile: Profile, image: Path) -> None:
    key = made(profile)
    chosen = served(profile, image)
    assert publish(profile, ImageChoice(current=chosen), "CA")
    for index, node in enumerate(profile.compute_nodes):
        file = signed_for(profile, index)
        assert verifies(file, key)
        line = boot_parameters.command_line(profile, node, chosen.id)
        assert signed.section(file.read_bytes(), ".cmdline").decode() == line
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        assert boot_parameters.uefi_loader(profile, node) == file.name
    assert boot_parameters.uefi_loader(profile) == profile.boot.loaders.uefi


def test_a_changed_byte_or_another_key_does_not_verify(
    profile: Profile, image: Path, tmp_path: Path
) -> None:
    key = made(profile)
    publish(profile, ImageChoice(current=served(profile, image)), "CA")
    program = signed_for(profile).read_bytes()
    for place in (".cmdline", ".linux", ".initrd"):
        at = program.index(signed.section(program, place)[:20])
        changed = tmp_path / "changed.efi"
        changed.write_bytes(program[:at] + bytes([program[at] ^ 1]) + program[at + 1 :])
        assert not verifies(changed, key)
    paths.cluster("other").mkdir()
    assert not verifies(signed_for(profile), secure_boot.make("other"))


def test_they_are_made_again_when_anything_in_them_changes(profile: Profile, image: Path) -> None:
    made(profile)
    choice = ImageChoice(current=served(profile, image))
    assert publish(profile, choice, "CA")
    before = signed_for(profile).stat().st_ino
    assert not publish(profile, choice, "CA")
    assert signed_for(profile).stat().st_ino == before
    assert publish(profile, choice, "ANOTHER CA")
    words = profile.boot.model_copy(update={"kernel_args": ("quiet",)})
    assert publish(profile.model_copy(update={"boot": words}), choice, "ANOTHER CA")
    key = secure_boot.find(profile.name)
    key.directory.rename(key.directory.with_name("before"))
    made(profile)
    assert publish(profile, choice, "ANOTHER CA")


def test_a_key_is_made_once_and_only_its_owner_reads_it(profile: Profile, image: Path) -> None:
    key = made(profile)
    first = key.certificate.read_text()
    assert stat.S_IMODE(key.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(key.key.stat().st_mode) == 0o600
    assert made(profile) == key and key.certificate.read_text() == first
    names = {path.name for path in key.to_enroll.iterdir()}
    assert names == {"certificate.cer", "PK.auth", "KEK.auth", "db.auth"}
    assert {path.name for path in key.directory.parent.iterdir()} == {"secure-boot", "lock"}
    # A signed variable ends with its value.
    assert (key.to_enroll / "PK.auth").read_bytes().endswith(key.signature_list)
    openssl = ["openssl", "x509", "-inform", "DER", "-noout", "-fingerprint", "-sha256", "-in"]
    shown = subprocess.check_output([*openssl, key.to_enroll / "certificate.cer"], text=True)
    assert shown.strip().partition("=")[2].replace(":", "") == key.fingerprint


def test_another_dhcp_server_is_told_each_nodes_file(profile: Profile) -> None:
    told = {row[2] for row in dhcp.options(profile) if row[1].startswith("67")}
    for node in profile.compute_nodes:
        name = boot_parameters.signed_image(node)
        assert {name, f"{boot_parameters.server(profile)}/loaders/{name}"} <= told


def test_without_a_key_nothing_is_served(profile: Profile, image: Path) -> None:
    with pytest.raises(UserError, match="no key for Secure Boot"):
        publish(profile, ImageChoice(current=served(profile, image)), "CA")
    assert not (paths.served(profile.name) / "netboot").exists()


def test_a_simulated_machines_firmware_knows_the_key_alone() -> None:
    own = firmware("uefi", secure=True, enrolled=b"LIST")
    assert own == replace(SECURE, variables=UEFI.variables, enrolled=b"LIST")
    with pytest.raises(ValueError, match="authenticated"):
        enroll(bytes(0x100), b"LIST")


def test_boot_files_are_archived_with_their_modes() -> None:
    with tarfile.open(fileobj=io.BytesIO(signed.archive({"/a/b": BootFile("x", 0o600)}))) as tar:
        (entry,) = tar
    assert (entry.name, entry.mode, entry.uid, entry.size) == ("a/b", 0o600, 0, 1)
