"""`orchestrate trust`: the cluster's keys, how long they last, and new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.cli import complete
from orchestrator.cli.choice import json_option
from orchestrator.cli.where import on_cluster
from orchestrator.core.console import out, print_json

PARTS = ("ssh", "ray", "api")

if TYPE_CHECKING:
    from orchestrator.profile import Profile


@click.group()
def trust() -> None:
    """The cluster's keys: status, rotation and renewal."""


@trust.command()
@on_cluster
@json_option
def status(profile: Profile, as_json: bool) -> None:
    """Show the authorities, and when the operator's and the nodes' certificates expire.

    Example: orchestrate trust status
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.rotate import standing

    found = standing(open_cluster(profile))
    if as_json:
        print_json(
            {
                "fingerprints": found.fingerprints,
                "rotating": found.rotating,
                "certificates": [
                    {
                        "node": each.node or None,
                        "until": each.until.isoformat() if each.until else None,
                        "ends_soon": each.ends_soon,
                        "problem": each.problem or None,
                    }
                    for each in found.certificates
                ],
            }
        )
        return
    for name, fingerprint in found.fingerprints.items():
        out.print(f"{name:<9} {fingerprint}", markup=False)
    for each in found.certificates:
        soon = "; 'up' renews it, or: orchestrate trust renew" if each.ends_soon else ""
        whose = each.node or "the operator"
        out.print(f"certificate of {whose}: {each.told}{soon}", markup=False)
    if found.rotating:
        out.print(
            "a rotation was interrupted; old and new keys are valid. Run: orchestrate trust rotate"
        )


@trust.command()
@on_cluster
@json_option
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Default: all three.")
@click.option(
    "--without",
    multiple=True,
    metavar="NODE",
    shell_complete=complete.nodes,
    help="Do not wait for this node, which is on and does not answer. Reboot it afterwards.",
)
def rotate(
    profile: Profile, as_json: bool, only: tuple[str, ...], without: tuple[str, ...]
) -> None:
    """Replace all keys of a running cluster.

    The keys: SSH's authorities and the operator's key; Ray's token; the endpoint's API key. Nobody
    is locked out during the rotation. After an interruption, run it again. New tokens restart Ray
    and the model. With '--only ssh' nothing stops.

    \b
    Example: orchestrate trust rotate
    Example: orchestrate trust rotate --only ssh
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.rotate import KeyKind
    from orchestrator.cluster.rotate import rotate as renew_all
    from orchestrator.core.nodeset import fold
    from orchestrator.core.progress import Board
    from orchestrator.node.selection import find

    cluster = open_cluster(profile)
    left_out = [find(cluster.profile, word).name for word in without]
    parts = [KeyKind(each) for each in only or PARTS]
    with cluster.locked("trust rotate"), Board(quiet=as_json) as board:
        names = renew_all(cluster, board, parts, left_out)
    if as_json:
        print_json({"rotated": parts, "nodes": names})
    else:
        where = fold(names) if names else "no node is on"
        out.print(f"{', '.join(parts)}: new keys; {where}", markup=False)


@trust.command()
@on_cluster
@json_option
def renew(profile: Profile, as_json: bool) -> None:
    """Issue new certificates from the same authorities, to the operator and all nodes that are on.

    'up' and 'watch' do this for hosts with less than a third of their year left.

    Example: orchestrate trust renew
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.cluster.rotate import renew as again
    from orchestrator.core.nodeset import fold
    from orchestrator.core.progress import Board

    cluster = open_cluster(profile)
    with cluster.locked("trust renew"), Board(quiet=as_json) as board:
        names = again(cluster, board)
    if as_json:
        print_json({"nodes": names})
    else:
        out.print(f"new certificates: the operator, {fold(names) or 'no node'}", markup=False)


@trust.command("secure-boot")
@on_cluster
@json_option
def secure_boot(profile: Profile, as_json: bool) -> None:
    """Make your own key for Secure Boot, if there is none; show what firmware has to know of it.

    With 'boot.secure: own' this key signs what nodes boot. Enroll its certificate in each node's
    firmware once, from the printed directory. Keep a copy of the key: without it each board needs
    a new one.

    Example: orchestrate trust secure-boot
    """
    from orchestrator.cluster.cluster import open_cluster
    from orchestrator.provision.secure_boot import make

    key = make(open_cluster(profile).profile.name)
    if as_json:
        print_json({"enroll": str(key.to_enroll), "sha256": key.fingerprint})
        return
    out.print(f"files for the firmware's setup: {key.to_enroll}", markup=False)
    out.print(f"sha256 of the certificate: {key.fingerprint}", markup=False)
    if profile.boot.secure != "own":
        out.print("to boot images that it signs: boot.secure: own in the profile, then up")
