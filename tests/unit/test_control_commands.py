"""Which commands go to the control host where the profile names one: all but a few."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from support.commands import leaves

from orchestrator import cli
from orchestrator.cli import control_host, orchestrate, where
from orchestrator.cli.where import READ_INPUT
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import run
from orchestrator.models.profiles import load
from orchestrator.profile import Profile
from orchestrator.profile.choose import VARIABLE

PROJECT = Path(__file__).resolve().parents[2]
#: About the checkout that is edited here, how to reach the other computer, or a cluster of others;
#: or for a browser on this computer.
STAY = {"profile", "doc", "completion", "control", "image lock", "image outdated"}
STAY |= {"attach", "doctor", "dashboard"}
#: A word for each argument that a command cannot do without.
WORDS = {
    "name": "pxe-sim",
    "node": "compute0",
    "repository": "x/y",
    "before": "a",
    "question": "?",
    "directory": "d",
}
#: And options, where it wants one of several.
OPTIONS = {"orchestrate sim link": ["--reset"]}


def stays(path: str) -> bool:
    words = path.split()[1:]
    return words[0] in STAY or " ".join(words) in STAY


GO = [(path, command) for path, command in leaves() if not stays(path)]


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An active profile that names its control host. No program is there: nothing can happen."""
    profile = tmp_path / "far.yml"
    text = (PROJECT / "profiles/sim.yml").read_text()
    profile.write_text(text.replace("name: sim\n", "name: far\ncontrol_host: { ssh: nuc }\n", 1))
    monkeypatch.setenv(VARIABLE, str(profile))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return profile


@pytest.mark.parametrize(("path", "command"), [pytest.param(*x, id=x[0]) for x in GO])
def test_it_goes_there(
    path: str, command: click.Command, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = [WORDS[each.name or ""] for each in command.params if each.required]
    args = [*path.split()[1:], *needed, *OPTIONS.get(path, ())]
    sent: list[tuple[Path, list[str]]] = []

    def send(profile: Profile, words: list[str]) -> int:
        sent.append((profile.path, words))
        return 7

    monkeypatch.setattr(where, "run_there", send)
    assert orchestrate.main(args=args, prog_name="orchestrate", standalone_mode=False) == 7
    assert sent == [(laptop, args)]


def test_the_figures_of_a_dashboard_come_from_there(
    laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is served here, and asks for them so."""
    sent: list[list[str]] = []

    def send(_: Profile, words: list[str]) -> int:
        sent.append(words)
        return 7

    monkeypatch.setattr(where, "run_there", send)
    args = ["dashboard", "--json"]
    assert orchestrate.main(args=args, prog_name="orchestrate", standalone_mode=False) == 7
    assert sent == [args]


def test_an_image_is_built_here_where_the_profile_is_wrong(laptop: Path) -> None:
    laptop.write_text("name: [\n")
    with pytest.raises(UserError, match="nix"):  # it tries, and there is none
        orchestrate.main(args=["image", "build", "pxe-sim"], standalone_mode=False)


def test_a_model_of_this_computer_is_looked_at_here(laptop: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json"):
        orchestrate.main(
            args=["model", "inspect", str(tmp_path / "config.json")], standalone_mode=False
        )


def test_what_came_by_a_sync_runs_where_it_is(
    laptop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load(laptop)
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path / "checkout"))
    assert not control_host.is_here(profile)
    (tmp_path / "checkout.sync").mkdir()
    (tmp_path / "checkout.sync/tree").touch()
    assert control_host.is_here(profile)


#: What macOS lacks of Python's own modules, as far as one could want it.
LINUX = {
    "os": "setns unshare sched_getaffinity memfd_create eventfd pidfd_open getrandom O_DIRECT"
    " O_PATH O_TMPFILE splice copy_file_range posix_fadvise getxattr setxattr fdatasync",
    "socket": "AF_NETLINK AF_PACKET AF_VSOCK SO_BINDTODEVICE SO_PEERCRED SOCK_CLOEXEC",
    "select": "epoll",
    "signal": "pidfd_send_signal SIGRTMIN SIGRTMAX sigtimedwait sigwaitinfo SIGPWR",
}


def test_a_laptop_needs_nothing_of_linux(laptop: Path) -> None:
    """Not a Mac, but without the names and the libraries that one would miss there."""
    code = "\n".join(
        [
            "import ctypes, importlib",
            f"for module, names in {LINUX}.items():",
            "    for name in names.split():",
            "        vars(importlib.import_module(module)).pop(name, None)",
            "ctypes.CDLL = None",
            "from orchestrator.cli import main",
            "from orchestrator.cli.control_host import RemoteCheckout",
            "RemoteCheckout.sync = lambda *_: None",
            "RemoteCheckout.run = lambda _, words, **__: print('sent', *words) or 0",
            f"for path in {[path for path, _ in GO if path not in OPTIONS]}:",
            "    try: main(path.split()[1:])",
            "    except SystemExit as end: assert end.code in (0, 1, 2), (path, end.code)",
        ]
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"sent up", "sent status", "sent image ls"} <= set(done.stdout.splitlines())


def test_commands_that_read_their_input_exist() -> None:
    assert {f"orchestrate {' '.join(words)}" for words in READ_INPUT} <= {path for path, _ in GO}


# What is sent.


def sent(checkout: Path) -> set[str]:
    return set(dict(control_host.tree(checkout, checkout / "profiles/x.yml")))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    checkout = tmp_path / "checkout"
    for name in ("flake.nix", ".venv/bin/python", "a/__pycache__/x.pyc", "result", "profiles/x.yml",
                 "x.egg-info/PKG-INFO", "state/clusters/sim/api.key"):  # fmt: skip
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    (checkout / "latest").symlink_to("profiles")
    (checkout / ".gitignore").write_text((PROJECT / ".gitignore").read_text())
    monkeypatch.setenv("ORCHESTRATE_STATE", str(checkout / "state"))
    return checkout


def test_what_git_ignores_and_what_is_kept_is_not_sent(checkout: Path) -> None:
    """With git or, on a laptop without it, by .gitignore."""
    wanted = {".gitignore", "flake.nix", "latest", "profiles/x.yml"}
    assert sent(checkout) == wanted
    run(["git", "init", "-q", checkout])
    assert sent(checkout) == wanted
    assert paths.state().is_relative_to(checkout)


def test_where_git_refuses_nothing_is_sent(checkout: Path) -> None:
    (checkout / ".git").mkdir()  # no repository
    with pytest.raises(UserError, match="git cannot list the files of"):
        sent(checkout)


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o770])
def test_open_connections_are_not_kept_where_others_get_at_them(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    sockets = control_host._sockets()
    assert sockets.stat().st_mode & 0o777 == 0o700
    sockets.chmod(mode)
    with pytest.raises(UserError, match="is not private to this user"):
        control_host._sockets()


def test_on_control_behind_two_dashes_is_another_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[list[str]] = []
    there: list[list[str]] = []

    def sent(words: list[str]) -> int:
        there.append(words)
        return 0

    monkeypatch.setattr(cli.orchestrate, "main", lambda args, **_: here.append(args))
    monkeypatch.setattr(cli, "sent", sent)
    words = ["node", "ssh", "compute0", "--", "x", "--on-control"]
    cli.main(words.copy())
    assert (here, there) == ([words], [])
    with pytest.raises(SystemExit):
        cli.main(["--on-control", *words])
    assert (here, there) == ([words], [words])
