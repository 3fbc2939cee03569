"""What image.yml changes in a wheel's METADATA: its name, or versions that it requires."""

import re


def with_name(metadata: bytes, new: dict) -> bytes:
    """METADATA with another name and version."""
    head, blank, body = metadata.decode().partition("\n\n")
    fields = {"Name": new["name"], "Version": new["version"]}
    lines = []
    for line in head.splitlines():
        key = line.partition(":")[0]
        lines.append(f"{key}: {fields[key]}" if key in fields else line)
    return ("\n".join(lines) + blank + body).encode()


def with_requirements(metadata: bytes, replaced: dict[str, str]) -> bytes:
    """METADATA with other versions of what it requires: 'pip check' in the image then says the
    truth, and so does everything else that asks the distribution."""
    head, blank, body = metadata.decode().partition("\n\n")
    lines = []
    for line in head.splitlines():
        found = re.match(r"(Requires-Dist:\s*([A-Za-z0-9._-]+)\s*(\[[^]]*\])?)[^;]*(;.*)?$", line)
        to = replaced.get(re.sub(r"[-_.]+", "-", found[2]).lower()) if found else None
        lines.append(line if to is None else f"{found[1]}{to}{found[4] or ''}")
    return ("\n".join(lines) + blank + body).encode()
