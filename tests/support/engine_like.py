"""What a probe starts as ``vllm.entrypoints.cli.main serve DIRECTORY ...``: like vLLM with dummy
weights, for faults of an engine. Standard library only.

``site(DIRECTORY)`` makes the package vllm of it. Its faults, ``--fault NAME``:
small (no memory for more than four layers), hangs, stubborn (leaves a process of its own session
that ignores SIGTERM), dies (at the first metrics).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

VERSION = "0.26.0"
ENTRY = "vllm/entrypoints/cli"
FOR_EVER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(10**6)"


def site(home: Path) -> Path:
    """A directory for PYTHONPATH, with this as vLLM."""
    place = home / ENTRY
    place.mkdir(parents=True)
    here = Path(__file__).parent
    shutil.copy(here / "engine_like.py", place / "main.py")
    shutil.copy(here / "openai_like.py", home / "openai_like.py")
    for package in ("vllm", "vllm/entrypoints", ENTRY):
        (home / package / "__init__.py").touch()
    about = home / f"vllm-{VERSION}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
    return home


def main() -> None:
    import openai_like  # type: ignore[import-not-found]

    fault = openai_like.FAULT
    config = json.loads((Path(openai_like.MODEL) / "config.json").read_text())
    layers = config["num_hidden_layers"]
    print(f"INFO 11-30 10:00:00 [core.py:1] {layers} layers, key {os.environ.get('VLLM_API_KEY')}")
    if fault == "small" and layers > 4:
        print("(EngineCore pid=1) ERROR 11-30 10:00:00 [core.py:2] ValueError: No available memory"
              " for the cache blocks.")  # fmt: skip
        print("(APIServer pid=2) RuntimeError: Engine core initialization failed.")
        sys.exit(1)
    if fault == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(10**6)
    if fault == "stubborn":
        subprocess.Popen([sys.executable, "-c", FOR_EVER], start_new_session=True)
    openai_like.PAUSE = 0.001 * layers
    tokens = '{block_size="16",num_gpu_blocks="64"} 1.0'
    openai_like.METRICS += f"vllm:cache_config_info{tokens}\n"
    openai_like.main()


if __name__ == "__main__":
    main()
