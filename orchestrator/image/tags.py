"""Which wheels fit an image: the tags that its Python and C library accept. Pure."""

from __future__ import annotations

from functools import cache

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

#: The platform tags older than manylinux_2_N, and the smallest N.
OLD_PLATFORMS = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")
OLDEST_GLIBC = 5


def platforms(glibc: str) -> list[str]:
    """The platform tags that a machine with this C library accepts, best first."""
    newest = int(glibc.split(".")[1])
    modern = [f"manylinux_2_{minor}_x86_64" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
    return [*modern, *OLD_PLATFORMS, "linux_x86_64"]


@cache
def supported(python: str, glibc: str) -> frozenset[Tag]:
    """All tags that CPython ``python`` (such as 3.13) accepts on a machine with this C library."""
    major, minor = (int(part) for part in python.split("."))
    interpreter, accepted = f"cp{major}{minor}", platforms(glibc)
    native = cpython_tags((major, minor), abis=[interpreter], platforms=accepted)
    return frozenset([*native, *compatible_tags((major, minor), interpreter, accepted)])


def misfit(file: str, python: str, glibc: str) -> str | None:
    """Why the wheel ``file`` cannot be used with this Python and C library; None if it can."""
    try:
        _, _, _, tags = parse_wheel_filename(file)
    except InvalidWheelFilename as error:
        return str(error)
    if tags & supported(python, glibc):
        return None
    named = file.removesuffix(".whl").split("-", 2)[2]
    return f"{file} is for {named}, not for Python {python} on x86_64 with glibc {glibc}"
