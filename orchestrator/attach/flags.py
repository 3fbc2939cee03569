"""The command lines of `vllm serve`: flags as a profile has them. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: How the server is started: a program's name, or a module's.
PROGRAM, VERB = "vllm", "serve"
MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")
#: Where the server listens if no flag says so.
DEFAULT_PORT = 8000
#: Short flags, and other spellings, of those that are read here.
SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "ep": "enable-expert-parallel",
    "q": "quantization",
    "n": "nnodes",
    "r": "node-rank",
    "asc": "api-server-count",
    "sc": "speculative-config",
    "cc": "compilation-config",
    "O": "compilation-config",
}
#: A value that the program replaced on the node, before it was sent.
HIDDEN = "***"
#: Flags that say where and for whom, not how fast: left out of a profile.
NOT_SPEED = re.compile(
    r"^(host|port|uds|api-key|served-model-name|ssl-.*|root-path|allowed-.*|uvicorn-.*|allow-.*"
    r"|log-.*|.*-log-.*|disable-log-.*|enable-log-.*|chat-template.*|download-dir|hf-token"
    r"|trust-remote-code|middleware|lora-modules|response-role|node-rank|headless|config"
    r"|master-addr|master-port|data-parallel-address|data-parallel-rpc-port"
    r"|data-parallel-start-rank|data-parallel-rank|otlp-.*|model|model-tag|tokenizer|seed)$"
)
#: Flags without a value: the word behind one is the model.
BARE = re.compile(
    r"^(enable-.*|disable-.*|enforce-eager|trust-remote-code|headless|async-scheduling)$"
)
FLAG = re.compile(r"^-(?:-([A-Za-z][\w.-]*)|([A-Za-z]{1,3}\d*(?:\.[\w.]+)?))(?:=(.*))?$", re.DOTALL)
NUMBER = re.compile(r"-?\d+(\.\d+)?")

#: A flag's value.
Value = str | int | float | bool


@dataclass(frozen=True)
class Flags:
    """A server's command line. ``given``: flags by their long names, with ``-`` for ``_``."""

    model: str
    given: dict[str, Value]

    def size(self, name: str) -> int:
        """A flag that is a number of ranks; 1 where it is not given."""
        value = self.given.get(name, 1)
        return value if isinstance(value, int) and value >= 1 else 1

    @property
    def port(self) -> int:
        value = self.given.get("port", DEFAULT_PORT)
        return value if isinstance(value, int) else DEFAULT_PORT

    @property
    def tensor(self) -> int:
        return self.size("tensor-parallel-size")

    @property
    def pipeline(self) -> int:
        return self.size("pipeline-parallel-size")

    @property
    def data(self) -> int:
        return self.size("data-parallel-size")

    @property
    def expert(self) -> bool:
        return bool(self.given.get("enable-expert-parallel", False))

    @property
    def names(self) -> list[str]:
        """The names by which clients ask for the model."""
        named = str(self.given.get("served-model-name", ""))
        return named.split() or [self.model]

    @property
    def speed(self) -> dict[str, Value]:
        """What decides how fast it is, apart from the sizes of the layout."""
        sizes = ("tensor", "pipeline", "data")
        layout = {f"{size}-parallel-size" for size in sizes} | {"enable-expert-parallel"}
        return {
            name: value
            for name, value in self.given.items()
            if name not in layout and not NOT_SPEED.match(name) and value != HIDDEN
        }

    @property
    def unread(self) -> list[str]:
        """What the command line hides."""
        return [f"flags in the file {self.given['config']}"] if "config" in self.given else []


def flags(argv: Sequence[str]) -> Flags | None:
    """The flags of a server's command line; None if it is another process's."""
    rest = _after_program(argv)
    if rest is None:
        return None
    given: dict[str, Value] = {}
    model, last = "", ""
    for word in rest:
        # A negative number is a value.
        match = None if NUMBER.fullmatch(word) else FLAG.match(word)
        if match:
            last, value = _named(match)
            given[last] = value
        elif not last or (given[last] is True and BARE.match(last)):
            model = model or word
        elif given[last] is True:
            given[last] = _typed(word)
        else:  # several values, as of --served-model-name
            given[last] = f"{given[last]} {word}"
    return Flags(str(given.get("model", model)), given)


def _after_program(argv: Sequence[str]) -> list[str] | None:
    """The words after ``vllm serve``, or after the server's module."""
    words = list(argv)
    for index, word in enumerate(words):
        is_program = word.rpartition("/")[2] == PROGRAM
        if is_program and words[index + 1 : index + 2] == [VERB]:
            return words[index + 2 :]
        is_module = words[max(0, index - 1)] == "-m" and word in MODULES
        if is_module or word.replace("/", ".").endswith(f"{MODULES[0]}.py"):
            rest = words[index + 1 :]
            return rest[1:] if rest[:1] == [VERB] else rest
    return None


def _named(match: re.Match[str]) -> tuple[str, Value]:
    """A flag's long name, and its value: true until a word follows."""
    long, short, value = match.groups()
    name = (long or SHORT.get(short, short)).replace("_", "-")
    if value is not None:
        return name, _typed(value)
    if long and name.startswith("no-"):
        return name.removeprefix("no-"), False
    return name, True


def _typed(word: str) -> Value:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if re.fullmatch(r"-?\d{1,18}", word):
        return int(word)
    return float(word) if NUMBER.fullmatch(word) and len(word) < 20 else word
