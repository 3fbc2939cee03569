"""oneAPI's setvars.sh of the image: sourced for real in both shells, over a tree that is there."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
IMAGE = PROJECT / "images/pxe-0.1"
ONEAPI = IMAGE / "config/opt/intel/oneapi"
PREFIX = yaml.safe_load((IMAGE / "image.yml").read_text())["system"]["environment"]
#: Prints the environment, with what belongs to the shell itself left out.
SHOW = "env -0 -u _ -u SHLVL -u OLDPWD -u PWD -u BASH_EXECUTION_STRING; printf '\\0\\0';"

both_shells = pytest.mark.parametrize("shell", ["dash", "bash"])


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A prefix with the one library that is looked for."""
    (tmp_path / "prefix/lib").mkdir(parents=True)
    (tmp_path / "prefix/lib/libsycl.so").touch()
    return tmp_path / "prefix"


@pytest.fixture
def script(prefix: Path) -> Path:
    """The script, for that prefix."""
    text = (ONEAPI / "setvars.sh").read_text()
    assert text.count(PREFIX) == 1, "the prefix is said once"
    script = prefix.parent / "setvars.sh"
    script.write_text(text.replace(PREFIX, str(prefix)))
    return script


def run(shell: str, commands: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run commands in a strict shell that has nothing but a PATH."""
    argv = [shell, "-euc", commands, "caller", *words]
    environment = {"PATH": "/usr/bin:/bin", **env}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def environments(shell: str, commands: str, *words: str, **env: str) -> list[Mapping[str, str]]:
    """The environments that the commands show."""
    done = run(shell, commands, *words, **env)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.removesuffix("\0\0\0").split("\0\0\0")
    return [dict(line.split("=", 1) for line in each.split("\0")) for each in shown]


@both_shells
def test_it_sets_what_the_runtime_in_one_prefix_needs(
    shell: str, script: Path, prefix: Path
) -> None:
    before, after = environments(shell, f"{SHOW} . {script}; {SHOW}")
    assert before == {"PATH": "/usr/bin:/bin"}
    roots = ("CCL_ROOT", "CMPLR_ROOT", "I_MPI_ROOT", "MKLROOT", "TBBROOT")
    assert after == {
        **dict.fromkeys(roots, str(prefix)),
        "ONEAPI_ROOT": "/opt/intel/oneapi",
        "FI_PROVIDER_PATH": f"{prefix}/lib",
        "OCL_ICD_FILENAMES": f"{prefix}/lib/libintelocl.so",
        "LD_LIBRARY_PATH": f"{prefix}/lib",
        "PATH": f"{prefix}/bin/libfabric:{prefix}/bin:/usr/bin:/bin",
        "SETVARS_COMPLETED": "1",
    }


@both_shells
def test_the_second_time_changes_nothing(shell: str, script: Path) -> None:
    once, twice = environments(shell, f". {script}; {SHOW} CCL_ROOT=mine; . {script}; {SHOW}")
    assert twice == {**once, "CCL_ROOT": "mine"}
    again = run(shell, f". {script}; . {script}")
    assert again.stderr.count("oneAPI environment initialized") == 1
    assert again.stdout == ""


def test_it_can_be_forced(script: Path) -> None:
    """With Intel's own option. A path is in a list once, whatever is done."""
    first, forced = environments(
        "bash", f". {script}; {SHOW} CCL_ROOT=; . {script} --force; {SHOW}"
    )
    assert forced == first


@both_shells
def test_what_a_caller_has_stays(shell: str, script: Path, prefix: Path) -> None:
    commands = f'. {script}; [ "$*" = "one two" ] && [ $# = 2 ] || exit 9; {SHOW}'
    (after,) = environments(shell, commands, "one", "two", LD_LIBRARY_PATH="/mine/lib")
    assert after["LD_LIBRARY_PATH"] == f"{prefix}/lib:/mine/lib"
    assert run(shell, f". {script}; set").stdout.count("_setvars") == 0


@both_shells
def test_an_image_without_the_runtime_says_so(shell: str, script: Path, prefix: Path) -> None:
    (prefix / "lib/libsycl.so").unlink()
    # With -e, dash ends where a sourced script fails, whatever follows.
    done = run(shell, f"set +e; . {script} || echo failed ${{CCL_ROOT-nothing set}}")
    assert done.stdout == "failed nothing set\n"
    assert f"{prefix}/lib has no libsycl.so" in done.stderr
    assert run(shell, f". {script}").returncode == 1


def test_components_lead_to_the_prefix() -> None:
    """Triton looks for SYCL in ONEAPI_ROOT/compiler/latest as soon as ONEAPI_ROOT is set."""
    components = (path for path in ONEAPI.iterdir() if path.is_dir())
    links = {path.name: (path / "latest").readlink() for path in components}
    assert links == dict.fromkeys(("ccl", "compiler", "mkl", "mpi", "tbb"), Path(PREFIX))
