"""What single values of a profile look like; each says in words what it allows.

A validator's message has the form "what is wrong; what is allowed".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from orchestrator.core.errors import BadInput
from orchestrator.core.source import quoted

UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SIZE = re.compile(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(UNITS)})")
SIZE_ALLOWED = "allowed: bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB, like 100MiB"


def parse_size(value: object) -> int:
    """Bytes of ``"100MiB"``, ``"1.5 GB"`` or a plain whole number. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{quoted(value)} is not a size; {SIZE_ALLOWED}")
    size = Fraction(match[1]) * UNITS[match[2]]
    if size.denominator != 1:
        raise ValueError(f"{quoted(value)} is not a whole number of bytes; {SIZE_ALLOWED}")
    return int(size)


@dataclass(frozen=True)
class Matching:
    """Text that matches ``pattern`` as a whole; ``allowed`` says so in words."""

    pattern: str
    allowed: str

    def check(self, value: str) -> str:
        if re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"{quoted(value)} is invalid; allowed: {self.allowed}")
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "pattern": f"^({self.pattern})$"}


def _address(value: object) -> IPv4Address:
    try:
        return IPv4Address(str(value))
    except ValueError:
        raise ValueError(
            f"{quoted(value)} is not an IPv4 address; allowed: four numbers like 10.77.0.1"
        ) from None


def _subnet(value: object) -> IPv4Network:
    allowed = "allowed: address/bits like 10.77.0.0/24, at most 31 bits"
    if "/" not in str(value):
        raise ValueError(f"{quoted(value)} is not a subnet; {allowed}")
    try:
        interface = IPv4Interface(str(value))
    except ValueError:
        raise ValueError(f"{quoted(value)} is not a subnet; {allowed}") from None
    subnet = interface.network
    if subnet.prefixlen > 31:  # 31: two nodes and nothing else (RFC 3021)
        raise ValueError(f"{quoted(value)} has no room for two nodes; {allowed}")
    if interface.ip != subnet.network_address:
        raise ValueError(f"{quoted(value)} is an address inside a subnet; did you mean {subnet}?")
    return subnet


def _host_name(value: object) -> object:
    """Says why a name that is one elsewhere is none here."""
    if isinstance(value, str) and "." in value:
        short = value.partition(".")[0].lower()
        raise ValueError(
            f"{quoted(value)} has a dot; nodes know each other by one word, without a domain"
            + (f": write {short}" if short else "")
        )
    if isinstance(value, str) and value != value.lower():
        raise ValueError(
            f"{quoted(value)} has capitals; names of nodes are lower-case, since DNS ignores the "
            f"case and SSH's certificates do not: write {value.lower()}"
        )
    return value


def _mac(value: str) -> str:
    if value and int(value[:2], 16) & 1:
        raise ValueError(
            f"{quoted(value)} is a multicast address; allowed: an address "
            "whose first pair of digits is even"
        )
    return value.lower()


def _regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f"{quoted(value)} is not a regular expression: {error}; allowed: Python's syntax"
        ) from None
    return value


def _object_store(value: int) -> int:
    if value < 75 * UNITS["MiB"]:
        raise ValueError("is below Ray's minimum; allowed: 75MiB or more")
    return value


def _whole_or_auto(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole and value != "auto":
        raise ValueError(f"{quoted(value)} is invalid; allowed: a whole number from 1, or auto")
    return value


def _bool_or_auto(value: object) -> object:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError(f"{quoted(value)} is invalid; allowed: true, false or auto")
    return value


def _flag_value(value: object) -> object:
    if not isinstance(value, str | int | float):
        raise ValueError(f"{quoted(value)} is invalid; allowed: text, a number, true or false")
    return value


def _variable(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is not text; allowed: text, in double quotes")
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError(
            "has a line break or a control character; allowed: one line of printable text"
        )
    return value


#: Whole words of a variable's name that say that it holds a secret: HF_TOKEN, not TOKENIZERS_X.
_SECRET = re.compile(r"(?:^|_)(?:API_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)(?:_KEY)?$")


def _open_name(name: str) -> str:
    if _SECRET.search(name.upper()):
        raise ValueError(
            "cannot be set here: it holds a secret, which a profile would put into units"
            " and process lists; allowed: variables that everybody may read"
        )
    return name


def _sysctl_value(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{quoted(value)} is invalid; allowed: a whole number, or text")
    if not re.fullmatch(r"[!-~]+( [!-~]+)*", str(value)):
        raise ValueError(f"{quoted(value)} is invalid; allowed: words, separated by one space")
    return value


def _node_names(value: str) -> str:
    """A node set that can be read. What its nodes have to be is checked in serving_checks.py."""
    from orchestrator.core.nodeset import unfold  # what it imports takes longer than a profile

    try:
        names = unfold(value)
    except BadInput:
        text = "allowed: names of nodes, like compute[0-7] or compute0,compute2"
        raise ValueError(f"{quoted(value)} is invalid; {text}") from None
    if not names:
        raise ValueError(f"{quoted(value)} names no node; allowed: one or more")
    return value


Name = Annotated[
    str,
    Matching(r"[a-z0-9][a-z0-9._-]{0,62}", "lower-case letters, digits and . _ - (at most 63)"),
]
ModelName = Annotated[
    str,
    Matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?",
        "NAME or OWNER/NAME, of letters, digits and . _ -",
    ),
]
NodeNames = Annotated[str, AfterValidator(_node_names)]
HubName = Annotated[
    str,
    Matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*",
        "OWNER/NAME, of letters, digits and . _ -",
    ),
]
#: A branch or a tag may hold something else tomorrow, the first digits of a commit too.
Revision = Annotated[
    str, Matching(r"[0-9a-f]{40}", "a commit: all 40 hexadecimal digits, lower-case")
]
HostName = Annotated[
    str,
    Matching(
        r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?",
        "lower-case letters, digits and - _ inside (at most 63)",
    ),
    BeforeValidator(_host_name),
]
Interface = Annotated[
    str,
    Matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", "letters, digits and . _ - (at most 15)"),
]
Mac = Annotated[
    str,
    Matching(
        r"([0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5})?",
        "six pairs of hexadecimal digits like 02:00:0a:4d:00:01",
    ),
    AfterValidator(_mac),
]
AccountName = Annotated[
    str,
    Matching(
        r"(?!root$)[a-z_][a-z0-9_-]{0,31}",
        "lower-case letters, digits and _ -, a letter first (at most 32), not root",
    ),
]
Destination = Annotated[
    str,
    Matching(
        r"([A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9_][A-Za-z0-9._:-]*",
        "HOST or USER@HOST, of letters, digits and . _ - :",
    ),
]
BaseUrl = Annotated[
    str,
    Matching(
        r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*)(:[0-9]{1,5})?"
        r"(/[A-Za-z0-9._~-]+)*",
        "http://HOST:PORT or https://HOST:PORT, with no user, password, query or closing /",
    ),
]
RemotePath = Annotated[
    str,
    Matching(
        r"/?[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*",
        "a path of letters, digits and . _ - /, no .. in it",
    ),
]
PublicKey = Annotated[
    str,
    Matching(
        r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( [^\r\n]*)?",
        "one line of an OpenSSH public key file, like 'ssh-ed25519 AAAA... name'",
    ),
]
VariableName = Annotated[
    str, Matching(r"[A-Za-z_][A-Za-z0-9_]*", "letters, digits and _, no digit first")
]
FlagName = Annotated[
    str,
    Matching(
        r"[A-Za-z][A-Za-z0-9_.-]*",
        "a long flag of 'vllm serve' without its leading dashes, like max-model-len",
    ),
]
Line = Annotated[str, Matching(r"[^\x00-\x1f\x7f]+", "one line of printable text, not empty")]
Regex = Annotated[Line, AfterValidator(_regex)]
AbsolutePath = Annotated[str, Matching(r"/[^\x00-\x1f\x7f]*", "an absolute path, beginning with /")]
PciId = Annotated[
    str, Matching(r"[0-9a-f]{4}:[0-9a-f]{4}", "VENDOR:DEVICE, like 8086:56a0, lower-case")
]
BarNumber = Annotated[str, Matching(r"[0-5]", "the number of a memory region, 0 to 5")]
ModuleName = Annotated[
    str, Matching(r"[A-Za-z0-9][A-Za-z0-9_-]*", "a kernel module's name: letters, digits and _ -")
]
#: 1280 is what every network has to carry whole; the rest is what an interface can be told.
Mtu = Annotated[int, Field(ge=1280, le=65535)]
SysctlName = Annotated[
    str,
    Matching(
        r"[a-z0-9_]+(\.[A-Za-z0-9_-][A-Za-z0-9_/-]*)+",
        "a kernel setting as sysctl names it, like net.core.rmem_max",
    ),
]
Address = Annotated[
    IPv4Address,
    PlainValidator(_address),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "ipv4"}),
]
Subnet = Annotated[
    IPv4Network,
    PlainValidator(_subnet),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9.]+/[0-9]+$"}),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"type": ["string", "integer"], "pattern": f"^{_SIZE.pattern}$", "minimum": 0}),
]
ObjectStoreSize = Annotated[Size, AfterValidator(_object_store)]
#: iPXE as the image has it, by the firmware that can load it.
BiosLoader = Literal["undionly.kpxe"]
UefiLoader = Literal["ipxe.efi", "snponly.efi"]
KernelWord = Annotated[
    str,
    Matching(r"[A-Za-z0-9_.,:;/=@+-]+", "one word of the kernel's command line, without quotes"),
]
Port = Annotated[int, Field(ge=1, le=65535)]
#: A port that a service without root rights can listen on.
HighPort = Annotated[int, Field(ge=1024, le=65535)]
WholeOrAuto = Annotated[
    Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(_whole_or_auto)
]
BoolOrAuto = Annotated[bool | Literal["auto"], BeforeValidator(_bool_or_auto)]
FlagValue = Annotated[str | int | float | bool, BeforeValidator(_flag_value)]
Variable = Annotated[str, BeforeValidator(_variable)]
Environment = dict[Annotated[VariableName, AfterValidator(_open_name)], Variable]
SysctlValue = Annotated[str | int, BeforeValidator(_sysctl_value)]
