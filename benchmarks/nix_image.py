"""Our side of the image benchmark: Nix builds the image from present inputs."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import statistics
import uuid
from dataclasses import dataclass
from pathlib import Path

from measure import Stage, measured, timed

from orchestrator import image
from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.run import run, stream
from orchestrator.image import store
from orchestrator.image.build.building import MAX_JOBS

#: The layer that holds the files of images/config, parts and images/NAME/config.
CONFIG = "config"
#: What the build scripts say at each step: the part, seconds since its start, and what begins.
STEP = re.compile(r"(\S+)> +(\d+\.\d) s  (.+)$")


def nix(*words: str | Path) -> list[str | Path]:
    options = ["nix", *store.options(), "--extra-experimental-features", "nix-command flakes"]
    return [*options, *words, "--no-write-lock-file"]


def afresh(name: str, scratch: Path) -> Stage:
    """Let Nix build the image with nothing of it in the store but its inputs.

    In a checkout of its own, whose build scripts differ by a comment: to Nix it is another image,
    with the same bytes. (`--rebuild` would compare the two as well.) Removed from the store after.
    """
    tree = copy_of_checkout(scratch / "afresh")
    with (tree / "images/lib/build/common.py").open("a") as script:
        script.write(f"# {uuid.uuid4()}\n")
    link = scratch / "afresh-result"
    lines: list[str] = []
    options = ["--max-jobs", MAX_JOBS, "--out-link", str(link), "-L"]
    with measured("nix build") as stage:
        stream(nix("build", f"{tree}#{name}", *options), lines.append, what=f"building {name}")
    stage.steps = steps(lines)
    same_bytes(name, link)
    made = closure(link) - closure(store.out_link(name))
    link.unlink()
    run(["nix-store", *store.options(), "--delete", *sorted(made)])
    shutil.rmtree(tree)
    return stage


def same_bytes(name: str, link: Path) -> None:
    """Raises UserError where the image behind ``link`` is not the built one ``name``."""
    if image.ident(link.resolve()) != image.ident(store.out_link(name).resolve()):
        raise UserError(
            f"{name}: built afresh, it has other bytes than the one in the store",
            f"Find the part: nix build --rebuild .#{name}.PART",
        )


def closure(link: Path) -> set[str]:
    """The store paths that the one behind ``link`` needs, itself too."""
    words = ["nix-store", *store.options(), "--query", "--requisites", str(link.resolve())]
    return set(run(words).out.split())


def steps(lines: list[str]) -> dict[str, float]:
    """Seconds by "part: step", from what the builds said: a step lasts until its part's next."""
    begun: dict[str, list[tuple[float, str]]] = {}
    for line in lines:
        if found := STEP.match(line):
            begun.setdefault(found[1], []).append((float(found[2]), found[3]))
    return {
        f"{part}: {step}": round(after - at, 1)
        for part, said in begun.items()
        for (at, step), (after, _) in itertools.pairwise(said)
    }


@dataclass(frozen=True)
class Changes:
    """What a change of one configuration file cost: seconds of each build, and of one without."""

    file: str
    runs: list[float]
    nothing_changed: float

    @property
    def median(self) -> float:
        return statistics.median(self.runs)


def change_config(name: str, repeats: int, scratch: Path) -> Changes:
    """Change a file of the config layer in a copy of the checkout, and build; so often.

    Raises UserError where another layer than config is new after it.
    """
    tree = copy_of_checkout(scratch / "checkout")
    file = next(
        path
        for path in (tree / "images" / name / "config", tree / "images/config")
        for path in sorted(path.rglob("*"))
        if path.is_file()
    )
    build(tree, name, scratch)  # whatever it lacked
    unchanged = layers(scratch)
    nothing = build(tree, name, scratch)
    runs = []
    for number in range(repeats):
        with file.open("a") as text:
            text.write(f"\n# change {number}\n")
        runs.append(build(tree, name, scratch))
        now = layers(scratch)
        changed = {layer for layer in now if now[layer] != unchanged[layer]}
        if changed != {CONFIG}:
            raise UserError(f"a change of {file.name} changed these layers: {sorted(changed)}")
    return Changes(str(file.relative_to(tree)), runs, nothing)


def copy_of_checkout(into: Path) -> Path:
    """A git checkout of its own with the files as they are here, committed or not."""
    listed = run(["git", "-C", paths.checkout(), "ls-files", "-z"]).out
    for name in listed.rstrip("\0").split("\0"):
        source, copy = paths.checkout() / name, into / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    git = [
        "git",
        "-C",
        str(into),
        "-c",
        "user.name=benchmark",
        "-c",
        "user.email=benchmark@localhost",
    ]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "copy"]):
        run([*git, *words])
    return into


def build(tree: Path, name: str, scratch: Path) -> float:
    """Seconds of `nix build` as people type it."""
    with timed(name) as stage:
        run(nix("build", f"{tree}#{name}", "--out-link", scratch / "result"))
    return stage.seconds


def layers(scratch: Path) -> dict[str, str]:
    """The sha256 of each layer of the image that was built last."""
    manifest = json.loads((scratch / "result" / image.MANIFEST).read_text())
    return {layer["name"]: layer["sha256"] for layer in manifest["layers"]}
