"""A checkout and a state directory of one test, whose models come from a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import PROJECT
from support.hub import REPOSITORY, REVISION, Hub, serving
from support.profiles import PROFILE, make_checkout

WEIGHTS = "model.safetensors"
CONFIG = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 4,
    "intermediate_size": 256,
}


@dataclass
class Box:
    """A checkout and a state directory of one test, and a hub."""

    root: Path
    hub: Hub

    @property
    def env(self) -> dict[str, str]:
        own = {
            "ORCHESTRATE_CHECKOUT": str(self.root),
            "ORCHESTRATE_STATE": str(self.root / "state"),
            "HOME": str(self.root),
            "HF_HOME": str(self.root / "hf"),
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": "hf_secret",
            "NO_PROXY": "127.0.0.1",
        }
        return os.environ | own

    @property
    def home(self) -> Path:
        return self.root / "state/hub" / REPOSITORY / REVISION

    def run(
        self, *words: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), cwd=PROJECT, env={**self.env, **(env or {})}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip

    def argv(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "orchestrator", "model", *map(str, words)]

    def pull(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run("pull", "--profile", self.root / "profiles/small.yml", *words)

    def json(self, *words: str | Path, env: Mapping[str, str] | None = None) -> Any:
        done = self.run(*words, "--json", env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextmanager
def boxed(tmp_path: Path) -> Iterator[Box]:
    """A profile with two models of one repository: ``big`` is pinned and served, ``open`` not."""
    text = PROFILE.replace(
        "serving:\n  model: tiny",
        f"models:\n  big: {{repository: {REPOSITORY}, revision: {REVISION}}}\n"
        f"  open: {{repository: {REPOSITORY}}}\nserving:\n  model: big",
    ).replace("{repeats: 3}", '{repeats: 3, prompts: [{question: "2 + 2?", contains: "4"}]}')
    make_checkout(tmp_path, text)
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        WEIGHTS: os.urandom(3_000_000),
        "pytorch_model.bin": b"the same weights again",
        "onnx/model.onnx": b"and again",
        "README.md": b"# big",
        "custom.py": b"import os",
    }
    with serving(Hub(files, large=(WEIGHTS, "pytorch_model.bin"))) as hub:
        yield Box(tmp_path, hub)
