"""Run as a program: pip that answers environment markers for the image's Python, and that takes
image.yml's word for what a distribution requires.

pip's --python-version and --platform choose files, but markers such as
``python_version < "3.12"`` are still read for the Python that pip runs on. The first argument is
the target's environment as JSON, the second the replaced requirements: {distribution: {requirement:
specifier}}, by canonical names. The rest goes to pip. Where pip changes inside, the caller sees it:
pip's report names the environment that it really used, and the versions that it chose.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Requires = Callable[..., Iterator[Any]]


def overriding(original: Requires, overrides: Mapping[str, Mapping[str, str]]) -> Requires:
    """pip's own list of what a distribution requires, with some of it replaced."""
    from pip._vendor.packaging.specifiers import SpecifierSet
    from pip._vendor.packaging.utils import canonicalize_name

    def iter_dependencies(distribution: Any, *words: Any, **more: Any) -> Iterator[Any]:
        replaced = overrides.get(distribution.canonical_name, {})
        for requirement in original(distribution, *words, **more):
            # A copy: pip shares one object between all that have the same line.
            own = copy.copy(requirement)
            if (to := replaced.get(canonicalize_name(requirement.name))) is not None:
                own.specifier, own.url = SpecifierSet(to), None
            yield own

    return iter_dependencies


if __name__ == "__main__":
    from pip._vendor.packaging import markers

    environment = json.loads(sys.argv.pop(1))
    overrides = json.loads(sys.argv.pop(1))
    # Before pip is imported, since it keeps its own names for this function. A copy each time: pip
    # adds to what it gets.
    markers.default_environment = environment.copy

    from pip._internal.cli.main import main
    from pip._internal.metadata import select_backend

    distribution: Any = select_backend().Distribution
    distribution.iter_dependencies = overriding(distribution.iter_dependencies, overrides)

    sys.exit(main())
