"""Nothing in the tree switches a verification off: of hosts, of certificates, of packages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

#: What it would look like, by what it would switch off.
SWITCHED_OFF = {
    "SSH host keys": r"StrictHostKeyChecking[\"'=: ]+(?:no|off|accept-new|ask)\b",
    "SSH known hosts": r"(?<!Global)(?:User)KnownHostsFile[\"'=: ]+(?:/dev/null|none)",
    "SSH, keys taken as they come": r"\bssh-keyscan\b",
    "TLS of curl": r"\bcurl\b[^\n]*(?: -\w*k\w*\b| --insecure\b| --proxy-insecure\b)",
    "TLS of wget": r"--no-check-certificate",
    "TLS of Python": r"verify\s*=\s*False|CERT_NONE|_create_unverified_context"
    r"|check_hostname\s*=\s*False",
    "TLS of git": r"http\.sslVerify|GIT_SSL_NO_VERIFY",
    "TLS of pip": r"--trusted-host|PIP_TRUSTED_HOST",
    "signatures of apt": r"trusted=yes|allow-insecure=yes|--allow-unauthenticated|--force-yes"
    r"|AllowUnauthenticated[\"'= ]+(?:true|yes|1)|AllowInsecureRepositories[\"'= ]+(?:true|yes|1)",
    "signatures of Nix": r"require-sigs[\"'= ]+false|--no-require-sigs|--no-check-sigs",
    "signatures of Secure Boot": r"set check_signatures=no|mokutil --disable-validation",
    "dm-verity": r"ignore_corruption|ignore_zero_blocks|\bverity=(?:0|off)\b",
    "SSH, passwords let in": r"(?:PermitRootLogin|PermitEmptyPasswords|PasswordAuthentication)"
    r"[\"'= ]+yes\b",
}

#: File -> what it may switch off, and why that is no loss.
ALLOWED = {
    # Descriptions of packages that it wrote itself, from image.yml; apt resolves with them and
    # fetches nothing. The files are checked by hash.
    "orchestrator/image/lock/apt.py": "signatures of apt",
    # Its repository is a directory that it made itself, of packages that were checked by hash.
    "benchmarks/conventional_image.py": "signatures of apt",
    # Faults that `make mutants` puts into a copy, for tests to notice.
    "tests/mutants/trust.yml": "SSH host keys",
}


def texts() -> list[tuple[str, str]]:
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    files = [name for name in sorted(set(said.splitlines())) if (PROJECT / name).is_file()]
    own = Path(__file__).name
    return [(name, (PROJECT / name).read_text()) for name in files if Path(name).name != own]


@pytest.mark.parametrize("what", SWITCHED_OFF)
def test_nothing_switches_it_off(what: str) -> None:
    wrong = [
        f"{name}:{text[: found.start()].count(chr(10)) + 1}: {found[0]}"
        for name, text in texts()
        if ALLOWED.get(name) != what
        for found in re.finditer(SWITCHED_OFF[what], text)
    ]
    assert not wrong, "\n".join(wrong)


def test_an_exception_that_is_not_needed_any_more_goes() -> None:
    for name, what in ALLOWED.items():
        assert re.search(SWITCHED_OFF[what], (PROJECT / name).read_text()), name


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("SSH host keys", "ssh -o StrictHostKeyChecking=no host"),
        ("SSH host keys", '"StrictHostKeyChecking": "accept-new"'),
        ("SSH known hosts", "-o UserKnownHostsFile=/dev/null"),
        ("TLS of curl", "curl -fsSk https://x"),
        ("TLS of curl", "curl -s --insecure https://x"),
        ("TLS of Python", "httpx.get(url, verify=False)"),
        ("TLS of Python", "context.verify_mode = ssl.CERT_NONE"),
        ("signatures of apt", "deb [trusted=yes] http://x ./"),
        ("signatures of Nix", "require-sigs = false"),
        ("dm-verity", "verity 1 a b ignore_corruption"),
    ],
)
def test_it_would_be_found(what: str, text: str) -> None:
    assert re.search(SWITCHED_OFF[what], text)


@pytest.mark.parametrize(
    "text",
    ['"GlobalKnownHostsFile": "/dev/null"', "curl -f -o k https://x", "StrictHostKeyChecking=yes"],
)
def test_it_finds_no_more_than_that(text: str) -> None:
    assert not [what for what, pattern in SWITCHED_OFF.items() if re.search(pattern, text)]
