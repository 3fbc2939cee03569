"""The work of Debian's maintainer scripts, as an explicit list of steps.

Each step reads the merged tree and adds to it. `settings`: the `system` section of image.yml.
"""

import posixpath
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import LIB, tool
from deb import unpack

#: Links that update-alternatives would make: link -> program, if the image has it.
ALTERNATIVES = {
    "usr/bin/awk": "mawk",
    "usr/bin/pager": "less",
    "usr/bin/cc": "gcc",
    "usr/bin/c++": "g++",
    "usr/bin/vi": "vim.tiny",
    "usr/bin/nc": "nc.openbsd",
    "usr/bin/which": "which.debianutils",
}

#: Units that Debian starts at each boot, and that a netbooted node does not need. With the
#: generators below they take a quarter of the processor time from power-on to SSH. A unit in
#: `system.enable` of image.yml stays.
UNUSED = (
    # For a person at the console: passwords, first boot, login records.
    *("systemd-ask-password-console.path", "systemd-ask-password-wall.path"),
    *("systemd-firstboot.service", "systemd-update-utmp.service"),
    *("systemd-update-utmp-runlevel.service", "systemd-initctl.socket"),
    # For a disk: growing partitions, storing journal, machine id and random seed, fstab.
    *("systemd-repart.service", "systemd-remount-fs.service", "systemd-journal-flush.service"),
    *("systemd-machine-id-commit.service", "systemd-random-seed.service"),
    *("systemd-pcrphase.service", "systemd-pcrphase-sysinit.service"),
    *("cryptsetup.target", "integritysetup.target", "veritysetup.target"),
    *("systemd-tpm2-setup-early.service", "systemd-tpm2-setup.service"),
    # Done by the build (`accounts`, `local_libraries`), or by a node's boot files (network).
    *("systemd-sysusers.service", "ldconfig.service", "systemd-network-generator.service"),
    # After each update of /usr; on a netbooted node, systemd would run them at each boot.
    *("systemd-hwdb-update.service", "systemd-journal-catalog-update.service"),
    "systemd-update-done.service",
    # File systems that nothing here uses; each costs a kernel module and a process.
    *("proc-sys-fs-binfmt_misc.automount", "systemd-binfmt.service", "sys-kernel-config.mount"),
    *("sys-fs-fuse-connections.mount", "sys-kernel-tracing.mount"),
    *("dev-hugepages.mount", "dev-mqueue.mount"),
)

#: Generators for the same things, which systemd runs at boot and at each `daemon-reload`. "ssh"
#: would open another SSH server to the host of a virtual machine.
UNUSED_GENERATORS = (
    *("cryptsetup", "getty", "gpt-auto", "hibernate-resume", "integritysetup", "rc-local"),
    *("run", "ssh", "system-update", "sysv", "tpm2", "veritysetup"),
)

#: Drivers for hardware that a cluster's machines do not have or use, by their path below `kernel/`.
#: With their own dependencies they are a fifth of the base layer, which each boot fetches first.
#: Drivers that others need stay (a graphics card's may need `cec`).
UNUSED_DRIVERS = (
    *("sound/", "drivers/media/", "drivers/staging/", "drivers/iio/", "drivers/comedi/"),
    *("drivers/net/wireless/", "net/mac80211/", "net/wireless/", "drivers/isdn/"),
    *("drivers/bluetooth/", "net/bluetooth/", "drivers/input/joystick/"),
    *("drivers/input/touchscreen/", "drivers/input/tablet/"),
)

#: The directories that Debian's ld.so.conf adds to the loader's built-in ones.
LOCAL_LIBRARIES = ("usr/local/lib/x86_64-linux-gnu", "usr/local/lib")

PAM = {
    "account": "account required pam_unix.so\n",
    "auth": "auth required pam_unix.so nullok\n",
    "password": "password required pam_unix.so obscure yescrypt\n",
    "session": "session required pam_unix.so\n-session optional pam_systemd.so\n",
    "session-noninteractive": "session required pam_unix.so\n",
}


def apply(root, settings: dict, python: str | None, controls: list[str]) -> None:
    """Run the steps, in order. `python`: the image's Python version, such as "3.13"."""
    accounts(root, settings.get("users", {}), settings.get("groups", {}))
    base_files(root)
    alternatives(root, ALTERNATIVES)
    if python:
        alternatives(root, {"usr/bin/python3": f"python{python}"})
    local_libraries(root)
    certificates(root)
    pam(root)
    ssh(root)
    modules(root)
    package_database(root, controls)
    units(root, settings.get("enable", []), settings.get("mask", []))
    unused(root, settings.get("enable", []))


def accounts(root, users: dict, groups: dict) -> None:
    """Add base-passwd's accounts and groups, and those that packages' scripts would make.

    Raises SystemExit if a package needs one that has no id in image.yml.
    """
    passwd = root.read("usr/share/base-passwd/passwd.master").decode().replace(":*:", ":x:")
    group = root.read("usr/share/base-passwd/group.master").decode().replace(":*:", ":x:")
    for name, gid in sorted(groups.items(), key=lambda item: item[1]):
        group += f"{name}:x:{gid}:\n"
    for name, user in sorted(users.items(), key=lambda item: item[1]["uid"]):
        home = user.get("home", "/nonexistent")
        group += f"{name}:x:{user['uid']}:\n"
        passwd += f"{name}:x:{user['uid']}:{user['uid']}::{home}:/usr/sbin/nologin\n"
    names = [line.split(":")[0] for line in passwd.splitlines()]
    group_names = [line.split(":")[0] for line in group.splitlines()]
    have = {"u": names, "g": group_names}
    sections = {"u": "users", "g": "groups"}
    lacking = [
        f"image.yml: system.{sections[kind]} has no {name}, which /{path} wants"
        for kind, name, path in wanted_accounts(root)
        if name not in have[kind]
    ]
    if lacking:
        raise SystemExit("\n".join(lacking))
    shadow_gid = next(int(line.split(":")[2]) for line in group.splitlines() if "shadow:" in line)
    root.file("etc/passwd", passwd)
    root.file("etc/group", group)
    # No account has a password: users log in with SSH certificates.
    shadow = "".join(f"{name}:*:19000:0:99999:7:::\n" for name in names)
    root.file("etc/shadow", shadow, 0o640, shadow_gid)
    root.file("etc/gshadow", "".join(f"{name}:*::\n" for name in group_names), 0o640, shadow_gid)


def wanted_accounts(root) -> list[tuple[str, str, str]]:
    """The accounts that packages declare for systemd-sysusers: "u" or "g", name, file.

    The build makes them with fixed ids. Ids chosen by systemd-sysusers could differ between images,
    and files that a control node keeps would change their owner.
    """
    found = []
    for path in root.paths("usr/lib/sysusers.d/"):
        for line in root.read(path).decode().splitlines():
            kind, name, *_ = [*line.split(), "", ""]
            if kind.rstrip("!") in ("u", "g"):
                found.append((kind.rstrip("!"), name, path))
    return found


def base_files(root) -> None:
    """Add links and files that the scripts of base-files and systemd would make."""
    root.link("var/run", "/run")
    root.link("var/lock", "/run/lock")
    root.link("etc/mtab", "../proc/self/mounts")
    root.link("etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target")
    # Empty, not absent: each boot gets a new id, and systemd's first-boot presets do not run.
    root.file("etc/machine-id", "")
    root.file("etc/nsswitch.conf", root.read("usr/share/libc-bin/nsswitch.conf"))
    root.file("etc/profile", root.read("usr/share/base-files/profile"))
    root.file("root/.profile", root.read("usr/share/base-files/dot.profile"))
    root.file("root/.bashrc", root.read("usr/share/base-files/dot.bashrc"))
    root.file("etc/environment", "")
    root.file("etc/default/locale", "LANG=C.UTF-8\n")
    root.file("etc/shells", "/bin/sh\n/bin/bash\n")
    for directory in ("srv", "mnt", "opt", "home", "var/lib/systemd", "var/log/journal", "boot"):
        if directory not in root:
            root.directory(directory)


def alternatives(root, links: dict[str, str]) -> None:
    """Add links to programs, if the program exists and no package has the link."""
    for link, program in links.items():
        target = f"{posixpath.dirname(link)}/{program}"
        if target in root and link not in root:
            root.link(link, program)


def local_libraries(root) -> None:
    """Add links for the libraries that only ldconfig's cache would find, which images do not have.

    Intel's graphics compiler is in these directories, and its driver opens it by name.
    """
    for directory in LOCAL_LIBRARIES:
        for path in [path for path in root.tree if posixpath.dirname(path) == directory]:
            name = posixpath.basename(path)
            if ".so" in name and f"{LIB}/{name}" not in root:
                root.link(f"{LIB}/{name}", f"/{path}")


def certificates(root) -> None:
    """Add the bundle that update-ca-certificates would write."""
    parts = root.paths("usr/share/ca-certificates/")
    if parts:
        bundle = b"".join(root.read(part).strip() + b"\n" for part in parts)
        root.file("etc/ssl/certs/ca-certificates.crt", bundle)


def pam(root) -> None:
    """Add the common-* files that pam-auth-update would write."""
    for name, lines in PAM.items():
        root.file(f"etc/pam.d/common-{name}", lines)


def ssh(root) -> None:
    """Add sshd's configuration, without a host key: a node makes its own at each boot."""
    if "usr/share/openssh/sshd_config" in root:
        root.file("etc/ssh/sshd_config", root.read("usr/share/openssh/sshd_config"))


def modules(root) -> None:
    """Remove unused drivers, and add depmod's index (modules.dep and others) of the rest."""
    paths = root.paths("usr/lib/modules/")
    versions = sorted({path.split("/")[3] for path in paths})

    def copy(path: str) -> None:
        """Copy a module for depmod, uncompressed: depmod would do that on a single core."""
        target = Path("modules", path.removeprefix("usr/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        data = root.read(path)
        target.write_bytes(unpack(data, "xz") if path.endswith(".ko.xz") else data)

    with ThreadPoolExecutor() as pool:
        list(pool.map(copy, paths))
    for version in versions:
        home = Path("modules/lib/modules", version)
        subprocess.run(tool("depmod", "--basedir", "modules", version), check=True)
        for module in unused_drivers((home / "modules.dep").read_text()):
            (home / module).unlink()
            del root.tree[f"usr/lib/modules/{version}/{module}"]
        subprocess.run(tool("depmod", "--basedir", "modules", version), check=True)
        for made in sorted(home.glob("modules.*")):
            root.file(f"usr/lib/modules/{version}/{made.name}", made.read_bytes())


def unused_drivers(dependencies: str) -> list[str]:
    """The modules to leave out, by the text of modules.dep (lines `MODULE: DEPENDENCIES`)."""
    lines = (line.partition(":") for line in dependencies.splitlines())
    needs = {module: needed.split() for module, _, needed in lines}
    unused = {
        each for each in needs if each.startswith(tuple(f"kernel/{d}" for d in UNUSED_DRIVERS))
    }
    kept = {needed for module in needs.keys() - unused for needed in needs[module]}
    return sorted(unused - kept)


def package_database(root, controls: list[str]) -> None:
    """Add dpkg's status file, for `dpkg -l` and security scanners."""
    stanzas = []
    for text in sorted(controls):
        first, _, rest = text.strip().partition("\n")
        stanzas.append(f"{first}\nStatus: install ok installed\n{rest}\n")
    root.file("var/lib/dpkg/status", "\n".join(stanzas))


def units(root, enabled: list[str], masked: list[str]) -> None:
    """Enable and mask units as systemctl does: links by their [Install] sections."""
    for unit in enabled:
        path = f"usr/lib/systemd/system/{unit}"
        if path not in root:
            raise SystemExit(f"image.yml enables {unit}, which no package brings")
        text = root.read(path).decode()
        for target in settings_of(text, "WantedBy"):
            root.link(f"etc/systemd/system/{target}.wants/{unit}", f"/{path}")
        for alias in settings_of(text, "Alias"):
            root.link(f"etc/systemd/system/{alias}", f"/{path}")
        for other in settings_of(text, "Also"):
            if other not in enabled and f"usr/lib/systemd/system/{other}" in root:
                units(root, [other], [])
    for unit in masked:
        root.link(f"etc/systemd/system/{unit}", "/dev/null")


def unused(root, wanted: list[str]) -> None:
    """Mask the units in UNUSED, except those that are `wanted`."""
    there = [unit for unit in UNUSED if f"usr/lib/systemd/system/{unit}" in root]
    units(root, [], [unit for unit in there if unit not in wanted])
    for name in UNUSED_GENERATORS:
        path = f"systemd/system-generators/systemd-{name}-generator"
        if f"usr/lib/{path}" in root:
            root.link(f"etc/{path}", "/dev/null")


def settings_of(text: str, key: str) -> list[str]:
    """All words of a setting in a unit file."""
    return [word for line in re.findall(rf"^{key}=(.*)$", text, re.M) for word in line.split()]
