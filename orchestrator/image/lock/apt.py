"""Debian: apt's own resolver in a private root, for the image's suite, not this machine's."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from orchestrator.core import paths
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.run import CommandFailed, run
from orchestrator.image import KEYRING_VARIABLE
from orchestrator.image.lock.mirrors import Mirrors
from orchestrator.image.lockfile import Deb, store_name
from orchestrator.image.spec import Debian, ElsewhereDeb

#: Where the package debian-archive-keyring puts the keys that suites are signed with.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARCHITECTURE = "amd64"

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
Dir::Etc::preferences "{root}/preferences";
Dir::Etc::preferencesparts "/dev/null";
"""


#: What apt needs to know of an installed package, for it to be the one that a suite has.
INSTALLED = (
    *("Package", "Version", "Architecture", "Multi-Arch", "Essential", "Installed-Size"),
    *("Pre-Depends", "Depends", "Provides", "Conflicts", "Breaks"),
)


def keyring() -> Path:
    """The keys that package lists are signed with. Raises UserError where they are missing."""
    chosen = os.environ.get(KEYRING_VARIABLE)
    found = Path(chosen) if chosen else KEYRING
    if not found.exists():
        raise UserError(
            f"{found} is missing: package lists could not be checked",
            f"Correct ${KEYRING_VARIABLE}."
            if chosen
            else "Run: apt-get install debian-archive-keyring",
        )
    return found.resolve()


def resolve(
    name: str,
    debian: Debian,
    mirrors: Mirrors,
    locked: Iterable[Deb] = (),
    update: Collection[str] = (),
) -> list[Deb]:
    """All packages that a machine of this suite gets for ``debian``'s roots, sorted by name.

    With ``locked``, only those in ``update`` (packages, or suites: all that are from there), what
    has to move with them, and what the suites no longer have, get another version. Raises BadInput
    where a root or an exclusion is not in the suite, the roots cannot be installed together, or a
    declared package is needed by none; UserError where the mirror cannot be used.
    """
    root = Root(paths.cache() / "apt" / name)
    root.prepare(debian, mirrors)
    root.update()
    if kept := {deb.name: deb.version for deb in locked if not deb.elsewhere}:
        versions = root.least_change(name, debian, kept, update)
        root.write("preferences", preferences(debian, versions))
    return root.resolve(name, debian)


class Root:
    """A private apt root: its own sources, lists and (empty) list of installed packages."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "apt.conf"

    def prepare(self, debian: Debian, mirrors: Mirrors) -> None:
        """Write the root's configuration. Raises UserError where the suite's keys are missing."""
        keys = keyring()
        (self.directory / "lists/partial").mkdir(parents=True, exist_ok=True)
        (self.directory / "archives/partial").mkdir(parents=True, exist_ok=True)
        self.config.write_text(CONFIG.format(root=self.directory, architecture=ARCHITECTURE))
        components = " ".join(debian.components)
        lines = [
            f"deb [signed-by={keys}] {mirrors.main} {suite} {components}\n"
            for suite in (debian.suite, *debian.also)
        ]
        if debian.security:
            # The last: of a file that a suite has taken over, apt then names the suite's place.
            lines.append(
                f"deb [signed-by={keys}] {mirrors.security} {debian.security} {components}\n"
            )
        if debian.elsewhere:
            lines.append(f"deb [trusted=yes] {self._declare(debian).as_uri()} ./\n")
        (self.directory / "sources.list").write_text("".join(lines))
        self.write("preferences", preferences(debian))
        self.write("status", "")

    def _declare(self, debian: Debian) -> Path:
        """Write a repository of the packages that lie elsewhere: descriptions, no files."""
        directory = self.directory / "elsewhere"
        directory.mkdir(exist_ok=True)
        stanzas = [stub(name, package) for name, package in debian.elsewhere.items()]
        (directory / "Packages").write_text("\n".join(stanzas))
        return directory

    def resolve(self, name: str, debian: Debian) -> list[Deb]:
        """What ``debian`` comes to with the package lists that are there. Raises as ``resolve``."""
        self.pretend_installed(debian.exclude)
        wanted = [*debian.roots, *(["?essential"] if debian.essential else [])]
        debs = self.describe(self.simulate(name, wanted), debian)
        if unused := debian.elsewhere.keys() - {deb.name for deb in debs}:
            raise BadInput(
                f"images/{name}/image.yml: debian.elsewhere: no package of the image needs "
                f"{', '.join(sorted(unused))}",
                "Add it to debian.packages, or remove it.",
            )
        return debs

    def least_change(
        self, name: str, debian: Debian, kept: Mapping[str, str], update: Collection[str]
    ) -> dict[str, str]:
        """The version that each package has once ``update`` is updated and no more is than has to.

        apt leaves what is installed alone as long as it can. So the packages ``kept``, as far as
        the suites still have these versions, are made to look installed, and what is to move is
        installed then. Raises BadInput where that cannot be.
        """
        offered = {(each["Package"], each["Version"]): each for each in self._offered(kept)}
        names = {package for package, _ in offered}
        there = {each: offered[each, kept[each]] for each in kept if (each, kept[each]) in offered}
        moving = {each for each in kept if each in update}
        if suites := set(debian.suites) & set(update):
            listed, candidates = self.listed(there), self.candidates(there)
            moving |= {
                each
                for each in there
                for version in (kept[each], candidates.get(each, ""))
                if listed.get((each, version), set()) & suites
            }
        moving |= {*(kept.keys() & names - there.keys()), *(set(debian.roots) - kept.keys())}
        self.pretend_installed(debian.exclude)
        installed = "".join(_installed(stanza, INSTALLED, "install") for stanza in there.values())
        self.write("status", (self.directory / "status").read_text() + installed)
        moved = self.simulate(name, ["--fix-broken", *sorted(moving)])
        return {each: kept[each] for each in there} | dict(each.split("=", 1) for each in moved)

    def _offered(self, names: Iterable[str], which: str = "--all-versions") -> list[dict[str, str]]:
        """What the suites have of each package, in all versions; nothing for one they lack."""
        argv = ["apt-cache", "-c", str(self.config), "show", which, *names]
        result = run(argv, what="reading package descriptions", ok=None)
        return [stanza for stanza in parse_stanzas(result.out) if stanza]

    def candidates(self, names: Iterable[str]) -> dict[str, str]:
        """The version of each package that apt would install; none for one that no suite has."""
        offered = self._offered(names, "--no-all-versions")
        return {stanza["Package"]: stanza["Version"] for stanza in offered}

    def listed(self, names: Iterable[str]) -> dict[tuple[str, str], set[str]]:
        """The suites that have each package, by its name and version."""
        argv = ["apt-cache", "-c", str(self.config), "madison", *names]
        found: dict[tuple[str, str], set[str]] = {}
        for line in run(argv, what="asking apt for suites").out.splitlines():
            package, version, place = (part.strip() for part in line.split("|"))
            suite = place.split()[1].partition("/")[0]
            found.setdefault((package, version), set()).add(suite)
        return found

    def update(self) -> None:
        """Bring the package lists up to date; apt checks their signatures."""
        run(["apt-get", "-c", self.config, "-qq", "update"], what="reading the package lists")

    def pretend_installed(self, excluded: Iterable[str]) -> None:
        """Tell apt that ``excluded`` are there: it then adds neither them nor what they need."""
        stanzas = self._stanzas(list(excluded))
        keep = ("Package", "Version", "Architecture", "Provides", "Multi-Arch", "Essential")
        # Held: apt would else "upgrade" it along with a package of the same source.
        self.write("status", "".join(_installed(stanza, keep, "hold") for stanza in stanzas))

    def write(self, file: str, text: str) -> None:
        """Write a file of apt's; a new one can cost apt its cache, so only if it differs."""
        path = self.directory / file
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

    def simulate(self, name: str, wanted: list[str]) -> list[str]:
        """What apt would install, as NAME=VERSION."""
        # Not -qq: apt then does not say what cannot be installed together.
        argv = ["apt-get", "-c", str(self.config), "-q", "--simulate", "install", *wanted]
        try:
            result = run(argv, what="resolving Debian packages")
        except CommandFailed as error:
            raise BadInput(
                f"images/{name}/image.yml: apt cannot install debian.packages together:\n"
                + _said(error.result.out, error.result.err)
            ) from None
        return parse_simulation(result.out)

    def describe(self, installs: list[str], debian: Debian) -> list[Deb]:
        """Path, size and hash of each NAME=VERSION, sorted by name."""
        stanzas, elsewhere = self._stanzas(installs), debian.elsewhere
        names = [each["Package"] for each in stanzas] if debian.security else []
        listed = self.listed(names) if names else {}
        debs = [
            _declared(each["Package"], elsewhere[each["Package"]])
            if each["Package"] in elsewhere
            else _deb(each, listed.get((each["Package"], each["Version"])) == {debian.security})
            for each in stanzas
        ]
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


def _installed(stanza: Mapping[str, str], fields: Iterable[str], wanted: str) -> str:
    """A paragraph of apt's list of installed packages."""
    lines = [f"{key}: {stanza[key]}\n" for key in fields if key in stanza]
    return "".join([f"Status: {wanted} ok installed\n", *lines, "\n"])


def stub(name: str, package: ElsewhereDeb) -> str:
    """The description of a package that lies elsewhere, as a package list has it."""
    fields = {
        "Package": name,
        "Version": package.version,
        "Architecture": package.architecture,
        "Depends": package.depends,
        "Provides": package.provides,
        "Breaks": package.breaks,
        "Filename": f"./{package.file}",
        "Size": str(package.size or 1),  # apt wants one, and does not use it here
        "SHA256": package.sha256,
        "Description": "declared in image.yml",
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value)


def preferences(debian: Debian, versions: Mapping[str, str] | None = None) -> str:
    """apt's preferences: a further suite gives only what is asked of it, and what only it has;
    a package that lies elsewhere, or that is among ``versions``, is taken in just that version."""
    pins = []
    for suite, names in debian.also.items():
        for kind in ("n", "a"):  # the suite may be named by codename or by archive
            pins.append(("*", f"release {kind}={suite}", 100))
            pins.append((" ".join(names), f"release {kind}={suite}", 990))
    exact = {**(versions or {}), **{name: at.version for name, at in debian.elsewhere.items()}}
    pins += [(name, f"version {version}", 1001) for name, version in exact.items()]
    return "\n".join(
        f"Package: {package}\nPin: {pin}\nPin-Priority: {priority}\n"
        for package, pin, priority in pins
    )


def _declared(name: str, package: ElsewhereDeb) -> Deb:
    """The lock's entry of a package that lies elsewhere."""
    return Deb(
        name=name,
        version=package.version,
        architecture=package.architecture,
        path=package.file,
        size=package.size,
        sha256=package.sha256,
        store=store_name(package.file),
        url=package.url,
        elsewhere=True,
    )


def _deb(stanza: Mapping[str, str], security: bool) -> Deb:
    path = stanza["Filename"]
    return Deb(
        name=stanza["Package"],
        version=stanza["Version"],
        architecture=stanza["Architecture"],
        path=path,
        size=int(stanza["Size"]),
        sha256=stanza["SHA256"],
        store=store_name(path.rpartition("/")[2]),
        security=security,
    )


def _said(out: str, err: str) -> str:
    """The lines of apt's output that tell what is wrong."""
    _, found, told = out.rpartition("unmet dependencies:\n")
    lines = [*(told if found else "").splitlines(), *err.splitlines()]
    return "\n".join(f"  {line.strip()}" for line in lines if line.strip())
