"""Run as a program: pip that answers environment markers for the image's Python.

pip's --python-version and --platform choose files, but markers such as
``python_version < "3.12"`` are still read for the Python that pip runs on. The first argument is
the target's environment as JSON; the rest goes to pip. Where pip changes inside, the caller sees
it: pip's report names the environment that it really used.
"""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    from pip._vendor.packaging import markers

    environment = json.loads(sys.argv.pop(1))
    # Before pip is imported, since it keeps its own names for this function. A copy each time: pip
    # adds to what it gets.
    markers.default_environment = environment.copy

    from pip._internal.cli.main import main

    sys.exit(main())
