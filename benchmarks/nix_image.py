"""Our side of the image benchmark: Nix builds each part of an image again from present inputs."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

from measure import Stage, measured, timed

from orchestrator import image, paths
from orchestrator.errors import UserError
from orchestrator.image import store
from orchestrator.run import run, stream

#: The parts of an image that the flake names: all derivations among its attributes.
PARTS = (
    "image: builtins.filter"
    ' (name: name != "out" && (image.${name}.type or "") == "derivation")'
    " (builtins.attrNames image)"
)
#: The layer that holds the files of images/config and images/NAME/config.
CONFIG = "config"
#: What the build scripts say at each step: seconds since their start, and what begins.
STEP = re.compile(r"(\d+\.\d) s  (.+)$")


def nix(*words: str | Path) -> list[str | Path]:
    options = ["nix", *store.options(), "--extra-experimental-features", "nix-command flakes"]
    return [*options, *words, "--no-write-lock-file"]


def parts(name: str) -> list[str]:
    """The image's parts, in the order in which they need each other, and last the image: ``""``.

    The initrd is made from the base layer; nothing else needs another part.
    """
    said = run(nix("eval", "--json", f"{paths.checkout()}#{name}", "--apply", PARTS)).out
    found: list[str] = json.loads(said)
    return [*found, ""]


def rebuild(name: str, part: str) -> Stage:
    """Let Nix build a part again, and compare it with the one in its store.

    Raises CommandFailed where the two differ.
    """
    attribute = f"{paths.checkout()}#{name}.{part}".rstrip(".")
    lines: list[str] = []
    what = f"building {part or name} again"
    with measured(part or "manifest") as stage:
        stream(nix("build", attribute, "--rebuild", "--no-link", "-L"), lines.append, what=what)
    stage.steps = steps(lines)
    return stage


def steps(lines: list[str]) -> dict[str, float]:
    """Seconds by step, from what a build said: a step lasts until the next one begins."""
    begun = [(float(found[1]), found[2]) for line in lines if (found := STEP.search(line))]
    following = begun[1:]
    return {
        step: round(after - at, 1) for (at, step), (after, _) in zip(begun, following, strict=False)
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
