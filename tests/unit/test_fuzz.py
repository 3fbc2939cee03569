"""Whatever comes to what reads foreign text, it raises the error that it documents, and no other.

Each test is bounded by its number of examples: a few seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.boot_service import ADDRESS, LIFETIME, MAC, Running
from support.hub import REPOSITORY, REVISION, Hub, serving
from support.profiles import PROFILE, make_checkout

from orchestrator.core.document import read_json
from orchestrator.core.errors import BadInput, UserError
from orchestrator.core.source import read
from orchestrator.image import lockfile
from orchestrator.models import hub_listing, wanted
from orchestrator.models.profiles import load
from orchestrator.provision.netboot import sources, timeline
from orchestrator.provision.netboot.boot_service import Files, Service
from orchestrator.provision.netboot.causes import stuck

few = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
text = st.text(st.characters(exclude_categories=[]), max_size=60)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def changed(draw: st.DrawFn, whole: str) -> str:
    """The text with a few parts removed, repeated, or replaced by something else."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(whole)))
        end = draw(st.integers(start, min(len(whole), start + 80)))
        between = draw(
            text | st.sampled_from(["*a", "&a ", "[" * 99, "{", '"', ": ", "\n- ", "!!", ""])
        )
        whole = whole[:start] + between + whole[draw(st.sampled_from([start, end])) :]
    return whole


queries = st.one_of(
    text, st.just(f"mac={MAC}"), st.builds("mac={}&boot={}".format, st.just(MAC) | text, text)
)
paths = st.sampled_from(["begin", "time", "report", "identity", "ipxe", f"ipxe/{MAC}"]) | text
bodies = st.one_of(
    st.binary(max_size=3000),
    st.builds(lambda *w: " ".join(w).encode("utf-8", "replace"), text, text, text, text),
    changed("layer:base failed 9.5 HTTP 404").map(lambda t: t.encode("utf-8", "replace")),
    changed(f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'A' * 43} x").map(
        lambda t: t.encode("utf-8", "replace")
    ),
)


@few
@given(st.sampled_from(["GET", "POST", "HEAD", "PUT"]), paths, queries, bodies)
def test_requests_to_the_boot_service(
    stopped: Running, method: str, path: str, query: str, body: bytes
) -> None:
    files = Files(
        stopped.home / "boot.json",
        stopped.state,
        stopped.home / "host_ca",
        stopped.home / "arp",
        LIFETIME,
    )
    transport = httpx.ASGITransport(Service(files).application())

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
            sent = quote(f"/boot/{path}", "/:%", errors="surrogatepass")
            asked = quote(query, "=&:%", errors="surrogatepass")
            address = f"http://control{sent}?{asked}"
            return await client.request(
                method, address, headers={"X-Real-IP": ADDRESS}, content=body
            )

    answer = asyncio.run(ask())
    assert answer.status_code in (200, 204, 400, 403, 404, 405, 409, 410, 413), answer.text
    assert all(line["mac"] for line in stopped.events())


LINES = (
    f"1 DHCPDISCOVER(eth0) {MAC}", f"1 DHCPREQUEST(eth0) 10.77.0.10 {MAC} wrong server-ID",
    "1 available DHCP subnet: 10.77.0.0/255.255.255.0", "1 vendor class: PXEClient:Arch:00007",
    f"1 PXE(eth0) 10.77.0.10 {MAC} ipxe.efi", "sent /srv/x/ipxe.efi to 10.77.0.10",
    "file /srv/x/kernel not found for 10.77.0.10",
)  # fmt: skip
lines = st.lists(st.sampled_from(LINES).flatmap(changed) | text, max_size=8)
reports = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["report", "script", "refused", "unknown", "identity"]) | text,
         "time": st.floats(0, 2e9), "text": text, "step": st.sampled_from(timeline.STEPS) | text,
         "status": st.sampled_from(["start", "done", "failed"]) | text, "boot": text},
        optional={"mac": st.just(MAC) | text, "address": text, "uptime": st.floats(0, 1e9)},
    ),
    max_size=8,
)  # fmt: skip
accesses = st.lists(
    st.fixed_dictionaries(
        {"uri": st.just("/loaders/ipxe.efi") | st.builds("/images/{}".format, text) | text,
         "status": st.integers(100, 599), "bytes": st.integers(0), "address": text,
         "time": st.floats(0, 2e9), "seconds": st.floats(0, 1e6)}
    ),
    max_size=8,
)  # fmt: skip


@few
@given(lines, reports, accesses)
def test_logs_of_boots(
    said: list[str], told: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> None:
    now = time.time()
    events = [
        *sources.from_dnsmasq((now, line) for line in said),
        *sources.from_access(asked),
        *sources.from_service(told),
    ]
    found = timeline.assemble([timeline.Place("node", MAC, "10.77.0.10")], events, now)
    for answers in (False, True):
        stuck(found.boots["node"], found, now, answers=answers)


@few
@given(changed(PROFILE) | text)
@example("~")
def test_profiles(
    tmp_path: Path, monkeypatch_once: Callable[[str, str], None], profile: str
) -> None:
    monkeypatch_once("ORCHESTRATE_CHECKOUT", str(tmp_path))
    file = tmp_path / "profiles/small.yml"
    if not file.exists():
        make_checkout(tmp_path)
    file.write_bytes(profile.encode("utf-8", "surrogatepass"))
    try:
        load(file)
    except BadInput as error:
        assert "small.yml" in error.message or "models/" in error.message, error.message


@pytest.fixture
def monkeypatch_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Sets a variable; the same for each example."""
    return monkeypatch.setenv


@few
@given(st.text(st.sampled_from("[]{}:,-?&*a!|>'\"%@# \n\t\\x0u\x07\u2028é"), max_size=120))
def test_yaml_of_its_own_characters(tmp_path: Path, document: str) -> None:
    (tmp_path / "x.yml").write_text(document, encoding="utf-8", newline="")
    source = read(tmp_path / "x.yml")
    json.dumps(source.data)
    assert all(problem.line >= 1 for problem in source.problems)


LOCK = json.dumps(
    {"schema": 1, "inputs": "0", "epoch": 1, "python": None, "system": {}, "debs": [
        {"name": "x", "version": "1", "architecture": "all", "path": "pool/x.deb", "size": 1,
         "sha256": "0" * 64, "store": "x.deb"}], "wheels": []}
)  # fmt: skip


@few
@given(changed(LOCK) | text | values.map(json.dumps))
def test_locks(tmp_path: Path, monkeypatch_once: Callable[[str, str], None], document: str) -> None:
    monkeypatch_once("ORCHESTRATE_CHECKOUT", str(tmp_path))
    file = tmp_path / "images/x/lock.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "image.yml").touch()
    file.write_bytes(document.encode("utf-8", "surrogatepass"))
    for act in (lambda: lockfile.read("x"), lambda: read_json(file)):
        try:
            act()
        except UserError as error:
            assert "lock.json" in error.message


siblings = st.lists(
    values
    | st.fixed_dictionaries(
        {"rfilename": text | st.just("config.json") | values},
        optional={"size": values, "blobId": values, "lfs": values},
    ),
    max_size=4,
)


class Odd(Hub):
    """A hub that says what it is told to."""

    said: tuple[object, object] = (None, None)

    def listing(self, revision: str) -> dict[str, object]:
        listed, commit = self.said
        return {"id": REPOSITORY, "sha": commit, "siblings": listed}


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Odd]:
    hub = Odd({})
    with serving(hub):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        yield hub


@few
@given(siblings | values, st.just(REVISION) | values)
def test_listings_of_a_hub(odd: Odd, listed: object, commit: object) -> None:
    odd.said = (listed, commit)
    try:
        files = hub_listing.listed(REPOSITORY, REVISION).files
        names = [file.path for file in files]
        if form := wanted.format_of(names):
            assert set(wanted.weights(names, form)) <= set(names)
        assert sum(file.size for file in files) >= 0
    except UserError as error:
        assert "hub" in error.message


manifests = values.map(json.dumps) | changed(
    json.dumps({"revision": REVISION, "files": {"config.json": {"size": 2, "sha256": "0" * 64}}})
)


@few
@given(manifests, st.binary(max_size=200))
def test_notes_in_a_directory(tmp_path: Path, manifest: str, note: bytes) -> None:
    notes = tmp_path / ".cache/huggingface/download"
    notes.mkdir(parents=True, exist_ok=True)
    (tmp_path / "config.json").write_text("{}")
    (notes / "config.json.metadata").write_bytes(note)
    (tmp_path / hub_listing.MANIFEST).write_bytes(manifest.encode("utf-8", "surrogatepass"))
    try:
        files = hub_listing.in_directory(tmp_path, REPOSITORY, REVISION)
        assert [file.path for file in files] == ["config.json"]
    except UserError as error:
        assert str(tmp_path) in error.message
