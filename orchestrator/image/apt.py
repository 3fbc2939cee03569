"""Debian: apt's own resolver in a private root, for the image's suite, not this machine's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from orchestrator import paths
from orchestrator.errors import BadInput, UserError
from orchestrator.image import MIRROR_VARIABLE
from orchestrator.image.lockfile import Deb, store_name
from orchestrator.image.spec import Debian
from orchestrator.run import CommandFailed, run

#: Where the package debian-archive-keyring puts the keys that suites are signed with.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARCHITECTURE = "amd64"

#: The host's package lists that come from a Debian mirror (its security archive says otherwise).
OF_DEBIAN = ("Origin: Debian", "Label: Debian", "Created-By: Packages")

#: What the host's configuration must not bring along; the rest of it (proxies) stays in force.
#: ForceEssential: apt would call itself essential, an image without apt is fine.
CONFIG = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
#clear APT::Architectures;
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
pkgCacheGen::ForceEssential ",";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{root}";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


def host_mirror() -> str | None:
    """The Debian mirror that this machine's own apt uses; None where it uses none."""
    result = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", *OF_DEBIAN],
        what="asking apt for its mirror",
        ok=None,
    )
    urls = [line.rstrip("/") for line in result.out.split() if re.match(r"https?://|file:", line)]
    return urls[0] if urls else None


def mirror(chosen: str | None) -> str:
    """The mirror to use: ``chosen`` where given, else what the host's apt uses."""
    found = chosen.rstrip("/") if chosen else host_mirror()
    if found is None:
        raise UserError(
            "no Debian mirror is known: this machine's apt uses none",
            f"Give one with --mirror URL or in ${MIRROR_VARIABLE}",
        )
    return found


def resolve(name: str, debian: Debian, chosen_mirror: str | None) -> list[Deb]:
    """All packages that a machine of this suite gets for ``debian``'s roots, sorted by name.

    Raises BadInput where a root or an exclusion is not in the suite or the roots cannot be
    installed together, UserError where the mirror cannot be used.
    """
    root = Root(paths.cache() / "apt" / name)
    root.prepare(debian, mirror(chosen_mirror))
    root.update()
    root.pretend_installed(debian.exclude)
    wanted = [*debian.packages, *(["?essential"] if debian.essential else [])]
    return root.describe(root.simulate(name, wanted))


class Root:
    """A private apt root: its own sources, lists and (empty) list of installed packages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "apt.conf"

    def prepare(self, debian: Debian, url: str) -> None:
        """Write the root's configuration. Raises UserError where the suite's keys are missing."""
        if not KEYRING.exists():
            raise UserError(
                f"{KEYRING} is missing: package lists could not be checked",
                "Run: apt-get install debian-archive-keyring",
            )
        (self.directory / "lists/partial").mkdir(parents=True, exist_ok=True)
        (self.directory / "archives/partial").mkdir(parents=True, exist_ok=True)
        self.config.write_text(CONFIG.format(root=self.directory, architecture=ARCHITECTURE))
        components = " ".join(debian.components)
        (self.directory / "sources.list").write_text(
            f"deb [signed-by={KEYRING}] {url} {debian.suite} {components}\n"
        )
        self._set_status("")

    def update(self) -> None:
        """Bring the package lists up to date; apt checks their signatures."""
        run(["apt-get", "-c", self.config, "-qq", "update"], what="reading the package lists")

    def pretend_installed(self, excluded: Iterable[str]) -> None:
        """Tell apt that ``excluded`` are there: it then adds neither them nor what they need."""
        stanzas = self._stanzas(list(excluded))
        keep = ("Package", "Version", "Architecture", "Provides", "Multi-Arch", "Essential")
        self._set_status(
            "".join(
                # Held: apt would else "upgrade" it along with a package of the same source.
                "Status: hold ok installed\n"
                + "".join(f"{key}: {stanza[key]}\n" for key in keep if key in stanza)
                + "\n"
                for stanza in stanzas
            )
        )

    def _set_status(self, text: str) -> None:
        """Write apt's list of installed packages; a new one costs apt its cache, so only if new."""
        path = self.directory / "status"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

    def simulate(self, name: str, wanted: list[str]) -> list[str]:
        """What apt would install, as NAME=VERSION."""
        argv = ["apt-get", "-c", str(self.config), "-qq", "--simulate", "install", *wanted]
        try:
            result = run(argv, what="resolving Debian packages")
        except CommandFailed as error:
            raise BadInput(
                f"images/{name}/image.yml: apt cannot install debian.packages together:\n"
                + _said(error.result.out, error.result.err)
            ) from None
        return parse_simulation(result.out)

    def describe(self, installs: list[str]) -> list[Deb]:
        """Path, size and hash of each NAME=VERSION, sorted by name."""
        debs = [_deb(stanza) for stanza in self._stanzas(installs)]
        return sorted(debs, key=lambda deb: deb.name)

    def _stanzas(self, packages: list[str]) -> list[dict[str, str]]:
        if not packages:
            return []
        argv = ["apt-cache", "-c", str(self.config), "show", "--no-all-versions", *packages]
        result = run(argv, what="reading package descriptions", ok=None)
        if result.code != 0:
            raise BadInput(f"image.yml: not in the suite:\n{_said(result.out, result.err)}")
        return list(parse_stanzas(result.out))


def parse_simulation(text: str) -> list[str]:
    """NAME=VERSION of the lines 'Inst NAME (VERSION ...' that apt's simulation prints."""
    found = re.findall(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+) ", text, re.MULTILINE)
    return [f"{name}={version}" for name, version in found]


def parse_stanzas(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a Debian control file; of folded fields only the first line."""
    for block in text.strip().split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines() if line[:1] not in (" ", "\t"))
        yield {key: value.strip() for key, _, value in pairs}


def _deb(stanza: Mapping[str, str]) -> Deb:
    path = stanza["Filename"]
    return Deb(
        name=stanza["Package"],
        version=stanza["Version"],
        architecture=stanza["Architecture"],
        path=path,
        size=int(stanza["Size"]),
        sha256=stanza["SHA256"],
        store=store_name(path.rpartition("/")[2]),
    )


def _said(out: str, err: str) -> str:
    lines = [line for line in (out + "\n" + err).splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in lines if not line.startswith(("Inst ", "Conf ")))
