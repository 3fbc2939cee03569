"""Where the dynamic loader looks, on small made-up trees; and how exceptions are matched."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from elftools.common.exceptions import ELFError
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.image.check import elf, libraries, loader
from orchestrator.image.check.elf import Content, Object
from orchestrator.image.check.libraries import Brought
from orchestrator.image.spec import Exceptions

LIB = "/usr/lib/x86_64-linux-gnu"
SITE = "/opt/env/lib/python3.11/site-packages"


def lib(path: str, *needed: str, rpath: str = "", runpath: str = "", soname: str = "") -> Object:
    def split(text: str) -> tuple[str, ...]:
        return tuple(filter(None, text.split(":")))

    return Object(path, False, needed, split(rpath), split(runpath), soname)


def program(path: str, *needed: str, rpath: str = "", runpath: str = "") -> Object:
    return Object(path, True, needed, tuple(rpath.split()), tuple(runpath.split()))


def lacking(*objects: Object, **links: str) -> list[tuple[str, str]]:
    tree = loader.Tree(objects, {path.replace("_", "/"): to for path, to in links.items()})
    return [(each.path.rpartition("/")[2], each.library) for each in loader.missing(tree)]


def test_what_is_nowhere_is_missing_and_what_is_in_a_built_in_directory_is_not() -> None:
    assert lacking(program("/usr/bin/a", "libb.so", "libc.so"), lib(f"{LIB}/libb.so")) == [
        ("a", "libc.so")
    ]
    assert lacking(program("/usr/bin/a", "libb.so"), lib("/usr/lib/libb.so")) == []
    assert lacking(program("/usr/bin/a", "libb.so"), lib("/usr/local/lib/libb.so")) == []
    assert lacking(program("/usr/bin/a", "libb.so"), lib("/opt/lib/libb.so")) == [("a", "libb.so")]


def test_the_loader_itself_is_needed_by_its_path_through_links() -> None:
    ld = lib(f"{LIB}/ld-linux-x86-64.so.2")
    links = {"/lib64": "usr/lib64", "/usr/lib64/ld.so": "../lib/x86_64-linux-gnu/" + ld.path[-20:]}
    tree = loader.Tree([program("/usr/bin/a", "/lib64/ld.so"), ld], links)
    assert loader.missing(tree) == []
    links["/usr/lib64/ld.so"] = "/lib/ld-musl.so"
    assert len(loader.missing(loader.Tree(tree.objects.values(), links))) == 1


def test_links_that_go_in_a_circle_lead_nowhere() -> None:
    tree = loader.Tree([lib("/a/x.so")], {"/l": "m", "/m": "/l", "/d": "a"})
    assert tree.at("/l") is None
    assert tree.at("/d/../d/./x.so") is tree.objects["/a/x.so"]


@pytest.mark.parametrize("origin", ["$ORIGIN/../deps.libs", "${ORIGIN}/../deps.libs"])
@pytest.mark.parametrize("kind", ["rpath", "runpath"])
def test_a_library_of_another_wheel_is_found_by_rpath(origin: str, kind: str) -> None:
    module = f"{SITE}/a/_c.so"
    dependency = lib(f"{SITE}/deps.libs/libx-12ab.so", soname="libx-12ab.so")
    assert lacking(lib(module, "libx-12ab.so", **{kind: origin}), dependency) == []
    assert lacking(lib(module, "libx-12ab.so"), dependency) == [("_c.so", "libx-12ab.so")]


def test_rpath_is_inherited_and_runpath_is_not() -> None:
    a = "/x/a.so"
    far, near = lib("/x/d/b.so", "c.so"), lib("/x/d/c.so")
    assert lacking(lib(a, "b.so", rpath="$ORIGIN/d"), far, near) == []
    assert lacking(lib(a, "b.so", runpath="$ORIGIN/d"), far, near) == [("b.so", "c.so")]
    # A RUNPATH of its own takes away what is inherited, and what is in its RPATH.
    other = lib("/x/d/b.so", "c.so", rpath="/x/d", runpath="/nowhere")
    assert lacking(lib(a, "b.so", rpath="$ORIGIN/d"), other, near) == [("b.so", "c.so")]


def test_what_is_loaded_already_is_not_looked_for() -> None:
    """As systemd has it: the program's RUNPATH finds both, its library has none for the other."""
    core, shared = (
        lib("/s/libcore.so", "libshared.so"),
        lib("/s/libshared-1.so", soname="libshared.so"),
    )
    systemd = program("/usr/bin/systemd", "libcore.so", "libshared-1.so", runpath="/s")
    assert lacking(systemd, core, shared) == []
    assert lacking(core, shared) == [("libcore.so", "libshared.so")]


def test_libraries_that_need_each_other_are_loaded_once() -> None:
    assert lacking(lib(f"{LIB}/a.so", "b.so"), lib(f"{LIB}/b.so", "a.so", "c.so")) == [
        ("b.so", "c.so")
    ]


names = st.sampled_from(["a.so", "b.so", "c.so", "d.so"])


@given(st.dictionaries(names, st.lists(names, max_size=3)))
def test_in_one_directory_only_what_is_not_there_is_missing(graph: dict[str, list[str]]) -> None:
    objects = [lib(f"{LIB}/{name}", *needed) for name, needed in graph.items()]
    wrong = {(name, each) for name, needed in graph.items() for each in needed if each not in graph}
    assert set(lacking(*objects)) == wrong


def check(allowed: Exceptions, *parts: Brought) -> list[tuple[str, str, str, str]]:
    found = libraries.check(parts, allowed)
    return [(each.who, each.wants, each.problem, each.key) for each in found]


def brought(owner: str, *objects: Object) -> Brought:
    return Brought(owner, Content(objects))


def test_a_finding_names_the_package_and_where_the_library_is() -> None:
    module = brought("vllm", lib(f"{SITE}/v/_C.so", "libtorch.so", "libcuda.so.1"))
    torch = brought("torch", lib(f"{SITE}/torch/lib/libtorch.so"))
    who = f"vllm: {SITE}/v/_C.so"
    where = f"outside the loader's search path: {SITE}/torch/lib/libtorch.so"
    assert check(Exceptions(), module, torch) == [
        (who, "libcuda.so.1", "not in the image", ""),
        (who, "libtorch.so", where, ""),
    ]


def test_an_exception_is_for_a_library_of_anybody_or_of_one_package_or_file() -> None:
    parts = [
        brought("one", lib("/x/plugin_a.so", "libcuda.so.1")),
        brought("two", lib("/x/b.so", "libcuda.so.1", "libnvrtc.so")),
    ]

    def keys(**sections: dict[str, str]) -> list[str]:
        return [key.removeprefix("check.") for *_, key in check(Exceptions(**sections), *parts)]

    assert keys(needed={"libcuda.so.*": "GPU"}) == [
        "needed.libcuda.so.*",
        "",
        "needed.libcuda.so.*",
    ]
    assert keys(needed={"two:*": "GPU"}) == ["needed.two:*", "needed.two:*", ""]
    assert keys(needed={"plugin_*:lib*": "GPU"}) == ["", "", "needed.plugin_*:lib*"]
    # Nothing can be loaded before that is not in the image.
    assert keys(loaded={"*": "imported before"}) == ["", "", ""]


def test_what_is_loaded_before_has_to_be_in_the_image() -> None:
    parts = [
        brought("vllm", lib("/x/_C.so", "libtorch.so")),
        brought("torch", lib("/t/libtorch.so")),
    ]
    allowed = Exceptions(loaded={"vllm:libtorch.so": "imported before"})
    assert check(allowed, *parts)[0][3] == "check.loaded.vllm:libtorch.so"
    assert check(allowed, parts[0])[0][3] == ""


def test_a_file_that_is_not_whole_is_a_finding() -> None:
    part = Brought("a", Content(broken={"/usr/lib/x.so": "not a whole ELF file: end"}))
    finding = ("a: /usr/lib/x.so", "to be read", "not a whole ELF file: end")
    assert check(Exceptions(), part) == [(*finding, "")]
    assert check(Exceptions(needed={"x.so:*": "test data"}), part) == [
        (*finding, "check.needed.x.so:*")
    ]


def test_paths_are_those_of_the_image() -> None:
    assert elf.merged("./lib/x86_64-linux-gnu/a.so") == "/usr/lib/x86_64-linux-gnu/a.so"
    assert elf.merged("./opt/lib/a.so") == "/opt/lib/a.so"
    assert elf.merged("./lib") == "/lib"  # the link itself, which Debian 13 has in a package
    assert elf.installed("a/_c.so", "/opt/env", "3.11") == f"{SITE}/a/_c.so"
    assert elf.installed("a-1.data/data/lib/x.so", "/opt/env", "3.11") == "/opt/env/lib/x.so"
    assert elf.installed("a-1.data/platlib/x.so", "/opt/env", "3.11") == f"{SITE}/x.so"
    assert elf.installed("a-1.data/scripts/x", "/opt/env", "3.11") == "/opt/env/bin/x"


def test_this_machines_own_files_are_read() -> None:
    """What pyelftools reads of a real program and library, here those that run this test."""
    path = Path("/proc/self/exe")
    with path.open("rb") as file:
        mine = elf.read("/usr/bin/python", file)
    assert mine.is_program and mine.needed[0].startswith("/lib")
    assert "libc.so.6" in mine.needed
    with pytest.raises(ELFError):
        elf.read("x", io.BytesIO(path.read_bytes()[:200]))
