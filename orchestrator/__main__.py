"""``python -m orchestrator`` is ``orchestrate``."""

import sys

from orchestrator.cli import main

if __name__ == "__main__":
    sys.exit(main())
