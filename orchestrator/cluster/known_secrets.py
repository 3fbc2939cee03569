"""The secrets that this machine knows of a cluster: for a redactor, and for nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core import paths
from orchestrator.core.errors import UserError
from orchestrator.core.foreign import ForeignDirectory
from orchestrator.core.redact import GONE, SECRETIVE
from orchestrator.node.trust import PAIRS, SUCCESSOR, TOKENS
from orchestrator.profile.power import PLACEHOLDER
from orchestrator.provision.netboot.state import BOOTS

if TYPE_CHECKING:
    from orchestrator.profile import Profile
    from orchestrator.profile.power import Power

#: An option whose next word is a secret, or may be.
_OPTION = re.compile(r"-{1,2}(?:[pPuUH]|.*(?:pass|pw|user|key|token|secret|auth|header).*)", re.I)
#: A word that is no secret: an option, or a verb that such programs know.
_PLAIN = re.compile(r"-{0,2}[a-z_./:=-]*|[0-9.:]*")
LONG_ENOUGH = 4
#: Bytes of the boot service's file: a thousand machines' last 20 boots are 4 MB.
BOOTS_MOST = 64 << 20
_SAYS_NOTHING = re.compile(r"\d*|true|false|yes|no|none|auto|on|off", re.I)


def known(profile: Profile) -> Iterator[str]:
    """Keys and tokens of the cluster, tokens of the hub, and what the profile says about power."""
    home = paths.cluster(profile.name)
    for place in (home, home / SUCCESSOR):
        for name in (*PAIRS, *TOKENS):
            with suppress(OSError):
                yield (place / name).read_text()
    yield from _nonces(ForeignDirectory(paths.lasting(profile.name)))
    with suppress(Exception):  # a broken file of the hub's is no reason to stop
        from huggingface_hub import get_token

        yield get_token() or ""
    models = [each.env for each in profile.serving.entries.values()]
    variables = [pair for env in (os.environ, profile.ray.env, *models) for pair in env.items()]
    for name, value in variables:
        if SECRETIVE.search(name) and not (_SAYS_NOTHING.fullmatch(value) or Path(value).exists()):
            yield value
    for power in _powers(profile):
        yield from _words(power)


def programs(profile: Profile) -> set[str]:
    """Names of the programs that switch power: their other words are not shown anywhere."""
    return {Path(argv[0]).name for power in _powers(profile) for argv in _commands(power)}


def shown(profile: Profile) -> dict[str, Any]:
    """The profile as a document, without what may be a secret: words of the power commands, and
    values of variables that are called so."""
    found: dict[str, Any] = _without(profile.document())
    return found


def _without(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _without(each, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        if key in ("on", "off", "status") and value:
            return [value[0], *(GONE for _ in value[1:])]
        return [_without(each) for each in value]
    return GONE if isinstance(value, str) and SECRETIVE.search(key) else value


def _nonces(lasting: ForeignDirectory) -> Iterator[str]:
    """Of boots: whoever knows one that is not used up gets that node's identity."""
    wrong = (OSError, UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
    with suppress(*wrong):
        for boots in json.loads(lasting.read(BOOTS, BOOTS_MOST)).values():
            for boot in boots:
                yield str(boot["boot"])


def _powers(profile: Profile) -> list[Power]:
    return [profile.power, *(node.power for node in profile.nodes if node.power)]


def _commands(power: Power) -> Iterator[tuple[str, ...]]:
    yield from filter(None, (power.on, power.off, power.status))


def _words(power: Power) -> Iterator[str]:
    """Parts of commands that may be secrets, but not words such as `chassis` or `status`."""
    for argv in _commands(power):
        for before, word in pairwise(argv):
            for part in re.split(r"[=@]", PLACEHOLDER.sub("=", word)):
                taken = _OPTION.fullmatch(before) and not part.startswith("-")
                pieces = [part, *part.split(":")] if "://" not in part else [part]
                for piece in pieces:
                    # A user's name may be any word: only what stands alone for a password is.
                    if len(piece) >= LONG_ENOUGH and (taken or not _PLAIN.fullmatch(piece)):
                        yield piece
