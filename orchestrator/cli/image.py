"""``orchestrate image``: lock, fetch, build, list and release images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import complete
from orchestrator.cli.choice import Looking, json_option
from orchestrator.cli.warm import warm
from orchestrator.cli.where import on_cluster, on_clusters_computer
from orchestrator.core.console import err, out, print_json
from orchestrator.core.sizes import human_size
from orchestrator.image import MIRROR_VARIABLE, SECURITY_MIRROR_VARIABLE

if TYPE_CHECKING:
    from orchestrator.image.build.inventory import ImageState
    from orchestrator.image.lock.mirrors import Mirrors
    from orchestrator.profile import Profile
    from orchestrator.provision.netboot.images import ImageChoice

mirror_option = click.option(
    "--mirror",
    envvar=MIRROR_VARIABLE,
    show_envvar=True,
    metavar="URL",
    help="Debian mirror (default: the one that this machine's apt uses).",
)
security_mirror_option = click.option(
    "--security-mirror",
    envvar=SECURITY_MIRROR_VARIABLE,
    show_envvar=True,
    metavar="URL",
    help="Debian security archive (default: the one that this machine's apt uses, else the one "
    "beside the mirror).",
)


def mirror_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --mirror and --security-mirror, as one parameter ``mirrors``."""

    @wraps(verb)
    def with_mirrors(*, mirror: str | None, security_mirror: str | None, **others: Any) -> Any:
        from orchestrator.image.lock.mirrors import Mirrors

        return verb(mirrors=Mirrors(mirror, security_mirror), **others)

    return mirror_option(security_mirror_option(with_mirrors))


@click.group()
def image() -> None:
    """Lock, fetch, check, build and list images.

    An image is a directory of images/ with an image.yml. In order:

    \b
    lock NAME    resolve image.yml into files with hashes: lock.json
    fetch NAME   download those files into the Nix store
    check NAME   check that no dependency is missing
    build NAME   build the image from them, without network

    Later: 'outdated' lists newer versions, 'export' keeps the files of a lock.
    """


@image.command()
@click.argument("name", shell_complete=complete.images)
@click.option(
    "--update",
    multiple=True,
    metavar="PACKAGE|SUITE",
    help="Update only this package, wheel or suite, and what it requires.",
)
@click.option(
    "--accept-publisher",
    "accepted",
    multiple=True,
    metavar="DISTRIBUTION",
    help="Accept that this distribution has another publisher than in the lock, or none.",
)
@mirror_options
@json_option
def lock(
    name: str, update: tuple[str, ...], accepted: tuple[str, ...], mirrors: Mirrors, as_json: bool
) -> None:
    """Resolve image.yml into lock.json and print what changed.

    Without --update, everything gets the newest version that image.yml allows. --update can be
    repeated, and so can --accept-publisher. Who published a wheel is known where the package index
    has attestations (PEP 740).

    Example: orchestrate image lock pxe-sim --update ray
    """
    from orchestrator.image.lock.locking import lock as lock_image
    from orchestrator.image.lockfile import known_size

    locked = lock_image(name, mirrors, update, accepted)
    if as_json:
        print_json(
            {
                "debs": len(locked.lock.debs),
                "wheels": len(locked.lock.wheels),
                "sources": len(locked.lock.sources),
                "size": known_size(locked.lock.files),
                "unsized": sum(file.size is None for file in locked.lock.files),
                "changes": locked.changes,
                "notes": locked.notes,
                "overrides": [each.document() for each in locked.overrides],
            }
        )
        return
    for line in (*locked.changes, *locked.notes, *map(str, locked.overrides)):
        out.print(line, markup=False)
    files = f"{len(locked.lock.debs)} packages, {len(locked.lock.wheels)} wheels"
    if locked.lock.sources:
        files += f", {len(locked.lock.sources)} source archives"
    out.print(f"{name}: {files}: {'nothing changed' if not locked.changes else 'lock written'}")


@image.command()
@on_clusters_computer
@click.argument("name", shell_complete=complete.images)
@click.option(
    "--from",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Take the files only from this directory: of 'image export' or 'image fetch --keep'.",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Parallel downloads.",
)
@click.option("--keep", is_flag=True, help="Keep the downloads, to carry them elsewhere.")
@click.option(
    "--available",
    is_flag=True,
    help="Skip files that no mirror and no package index has.",
)
@mirror_options
@json_option
def fetch(
    name: str,
    directory: Path | None,
    jobs: int,
    keep: bool,
    available: bool,
    mirrors: Mirrors,
    as_json: bool,
) -> None:
    """Download missing files of the image, the build tools and the loaders into the Nix store.

    Example: orchestrate image fetch pxe-0.1
    """
    from orchestrator.image import downloads
    from orchestrator.image.build import fetch as fetching
    from orchestrator.image.build.sources import Sources

    where = Sources(directory, mirrors)
    fetched = fetching.fetch(name, where, jobs=jobs, keep=keep, available=available)
    if as_json:
        print_json(asdict(fetched))
    elif fetched.files:
        out.print(f"{name}: {fetched.files} files fetched, {human_size(fetched.size)}")
    else:
        which = f"all {fetched.present} available" if available else f"all {fetched.present}"
        out.print(f"{name}: nothing to do, {which} inputs are in the Nix store")
    if keep and not as_json:
        out.print(f"The files are in {downloads.place()}.", markup=False)


@image.command()
@on_clusters_computer
@click.argument("name", shell_complete=complete.images)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--available",
    is_flag=True,
    help="Skip files that no mirror and no package index has.",
)
@json_option
def export(name: str, directory: Path, available: bool, as_json: bool) -> None:
    """Copy all locked files of the image from the Nix store to DIRECTORY, named by their sha256.

    Mirrors remove a file when a newer version replaces it. 'image fetch --from DIRECTORY' reads the
    copies, and checks each against the lock. Several images and old locks can share one directory.

    Example: orchestrate image export pxe-sim /media/backup/images
    """
    from orchestrator.image.build.export import export as export_files

    done = export_files(name, directory, available=available)
    if as_json:
        print_json(asdict(done))
    else:
        out.print(
            f"{name}: {done.files} files written, {human_size(done.size)}; {done.present} were "
            f"in {done.directory}",
            markup=False,
        )


@image.command(cls=Looking)
@click.argument("name", required=False, shell_complete=complete.images)
@mirror_options
@json_option
def outdated(name: str | None, mirrors: Mirrors, as_json: bool) -> None:
    """List locked Debian packages that have a newer version now (default: all images).

    Reads the package lists of the suites in image.yml, as 'image lock' does, and changes nothing.
    Security updates are marked. Of wheels it lists those whose newest release has another publisher
    than the lock. Exit code 0: nothing is newer; 2: something is newer; 1: an
    image has no lock, or a mirror cannot be used. So a job can tell news from a fault.

    Example: orchestrate image outdated pxe-sim
    """
    from orchestrator.image import spec
    from orchestrator.image.lock.outdated import outdated as find_outdated

    found = [find_outdated(each, mirrors) for each in ([name] if name else spec.names())]
    if as_json:
        print_json([asdict(each) for each in found])
    else:
        for line in (line for each in found for line in each.lines()):
            out.print(line, markup=False)
    sys.exit(2 if any(each.packages or each.publishers for each in found) else 0)


@image.command()
@on_clusters_computer
@click.argument("name", shell_complete=complete.images)
@json_option
def check(name: str, as_json: bool) -> None:
    """Check before a build that the lock holds everything that the image's files need.

    Checks every dependency and shared library, by the rules of apt, pip and the dynamic loader.
    Intentional gaps are listed in image.yml, with reasons. Exit code 0 only if nothing else is
    missing.

    Example: orchestrate image check pxe-sim
    """
    from orchestrator.image.check.checking import check as check_image

    report = check_image(name)
    if as_json:
        print_json(report.document())
    else:
        for line in report.lines():
            out.print(line, markup=False)
    sys.exit(0 if report.ok else 1)


@image.command()
@on_clusters_computer
@click.argument("name", shell_complete=complete.images)
@json_option
def build(name: str, as_json: bool) -> None:
    """Build an image with Nix. A second build does nothing.

    Example: orchestrate image build pxe-0.1
    """
    from orchestrator.image.build.building import build as build_image

    built = build_image(name, lambda line: err.print(line, markup=False))
    if as_json:
        print_json({"name": name, "path": built.path, "id": built.ident})
    else:
        out.print(f"{name}: {built.ident}\n  {built.path}", markup=False)


@image.command()
@on_clusters_computer
@click.argument("name", required=False, shell_complete=complete.images)
@json_option
def ls(name: str | None, as_json: bool) -> None:
    """List images: lock, inputs in the store, build. With NAME, also list missing inputs.

    Example: orchestrate image ls pxe-0.1
    """
    from orchestrator.image import spec
    from orchestrator.image.build import inventory

    states = [inventory.state(each) for each in ([name] if name else spec.names())]
    if as_json:
        print_json([asdict(state) | {"id": state.ident} for state in states])
        return
    _print_table(states)
    if name:
        for file in states[0].missing:
            out.print(f"missing: {file}", markup=False)


@image.command()
@on_clusters_computer
@click.argument("name", required=False, shell_complete=complete.images)
@json_option
def gc(name: str | None, as_json: bool) -> None:
    """Release an image's build, inputs and downloads (default: all images).

    Example: orchestrate image gc pxe-sim
    """
    from orchestrator.image import spec
    from orchestrator.image.build import inventory

    released = inventory.release([name] if name else spec.names())
    if as_json:
        print_json(asdict(released))
        return
    out.print(f"{human_size(released.removed)} of downloads removed.")
    out.print(f"Up to {human_size(released.collectable)} in the Nix store are no longer kept.")
    out.print("To have Nix delete them now: nix-store --gc")


@image.command()
@click.argument("name", shell_complete=complete.images)
@on_cluster
@json_option
def use(name: str, profile: Profile, as_json: bool) -> None:
    """Make the cluster's nodes boot the built image NAME from now on.

    The switch is atomic. Running nodes keep the image that they booted. An image other than the
    profile's stays selected until 'use' names the profile's again.

    Example: orchestrate image use pxe-sim
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.images import use_image

    cluster = open_cluster(profile)
    with cluster.locked("image use"):
        before = cluster.choice
        _print_choice(before, use_image(cluster, name), as_json)


@image.command()
@on_cluster
@json_option
def rollback(profile: Profile, as_json: bool) -> None:
    """Make the cluster's nodes boot the previous image.

    A later 'up' keeps the previous image; 'image use' selects a newer one.

    Example: orchestrate image rollback
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.images import roll_back_image

    cluster = open_cluster(profile)
    with cluster.locked("image rollback"):
        before = cluster.choice
        _print_choice(before, roll_back_image(cluster), as_json)


image.add_command(warm)


def _print_choice(before: ImageChoice, now: ImageChoice, as_json: bool) -> None:
    if as_json:
        print_json(asdict(now) | {"changed": before != now})
        return
    assert now.current is not None
    said = f"nodes boot {now.current.name} {now.current.id[:12]}"
    if now.previous:
        said += f"; before: {now.previous.name} {now.previous.id[:12]}"
    out.print(
        said + ("; held" if now.held else "") + ("" if before != now else "; nothing changed")
    )


def _print_table(states: list[ImageState]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("image", "lock", "inputs", "missing", "built", "size"):
        table.add_column(column)
    for state in states:
        unsized = f" and {state.unsized} of unknown size" if state.unsized else ""
        lacking = f"{len(state.missing)} ({human_size(state.missing_size)}{unsized})"
        table.add_row(
            state.name,
            state.lock,
            f"{state.inputs} ({human_size(state.inputs_size)})",
            lacking if state.missing else "-",
            state.ident[:12] if state.ident else "yes" if state.path else "-",
            human_size(state.size) if state.path else "-",
        )
    out.print(table)
