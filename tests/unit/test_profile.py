"""Loading a profile, what it answers, and how one is chosen."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.profiles import PROFILE, make_checkout

from orchestrator.core import paths
from orchestrator.core.errors import BadInput
from orchestrator.models import catalog
from orchestrator.models.profiles import active, load
from orchestrator.profile import Profile, known, locate, use
from orchestrator.profile.existing import Attached
from orchestrator.profile.schema import reference, schema_text
from orchestrator.profile.types import UNITS, parse_size


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a right profile, in a checkout and with a state of its own."""
    monkeypatch.setenv("ORCHESTRATE_CHECKOUT", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("ORCHESTRATE_PROFILE", raising=False)
    monkeypatch.chdir(tmp_path)
    return make_checkout(tmp_path)


@pytest.mark.parametrize("name", known())
def test_every_profile_of_the_checkout_is_right(name: str) -> None:
    assert load(locate(name)).name == name


def test_values_are_typed(small: Path) -> None:
    profile = load(small)
    assert profile.path == small
    assert profile.networks["lan"].subnet == IPv4Network("10.0.0.0/24")
    assert profile.control.links["lan"].mac == "8c:ae:4c:f4:4e:21"
    assert profile.compute_nodes[1].links["lan"].address == IPv4Address("10.0.0.101")
    assert profile.compute_nodes[0].links["usb4"].mac == ""
    assert profile.ray.object_store_memory == 1610612736
    assert profile.serving.tensor_parallel == "auto"
    assert profile.verification.repeats == 3
    assert profile.where("serving", "args", "dtype") == "profiles/small.yml:38: serving.args.dtype"


def test_questions_about_nodes(small: Path) -> None:
    profile = load(small)
    head, left, right = profile.nodes
    assert [profile.is_control(node) for node in profile.nodes] == [True, False, False]
    assert profile.server is left
    assert profile.ray_address(right) == "10.0.0.101"
    assert profile.boot_link(left).mac == "d8:bb:c1:a2:3e:a3"
    assert profile.boot_link(head).interface == "enx8cae4cf44e21"


def test_variables_are_filled_in_for_each_node(small: Path) -> None:
    env = (
        '{GLOO_SOCKET_IFNAME: "{interface}", CCL_KVS_IFACE: "{usb4.interface}", '
        'AT: "{address}:{usb4.address}", JSON: \'{"a": {}}\'}'
    )
    small.write_text(
        PROFILE.replace("env: {}", f"env: {env}").replace(
            "  model: tiny", '  model: tiny\n  env: {AT: "{mac}"}'
        )
    )
    profile = load(small)
    head, left, right = profile.nodes
    assert profile.ray_env(head) == {"GLOO_SOCKET_IFNAME": "enx8cae4cf44e21", "JSON": '{"a": {}}'}
    assert profile.ray_env(right) == {
        "GLOO_SOCKET_IFNAME": "enp6s0",
        "CCL_KVS_IFACE": "thunderbolt1",
        "AT": "10.0.0.101:10.0.1.2",
        "JSON": '{"a": {}}',
    }
    assert profile.serving_env() == profile.ray_env(left) | {"AT": "d8:bb:c1:a2:3e:a3"}


def test_a_loaded_profile_cannot_be_changed(small: Path) -> None:
    profile = load(small)
    with pytest.raises(ValueError, match="frozen"):
        profile.name = "other"


def test_the_document_loads_to_the_same_profile(small: Path) -> None:
    """JSON is YAML, and defaults are filled in: what 'show' prints is a profile too."""
    profile = load(small)
    small.write_text(json.dumps(profile.document()))
    assert load(small).document() == profile.document()


def test_text_stays_text(small: Path) -> None:
    """YAML 1.1 would read a number in base 60, a boolean and a date."""
    text = PROFILE.replace("d8:bb:c1:9b:84:8b", "10:22:33:44:55:10")
    small.write_text(text.replace("{dtype: half}", "{dtype: no, seed: 2026-01-01, num: 010}"))
    profile = load(small)
    assert profile.compute_nodes[1].links["lan"].mac == "10:22:33:44:55:10"
    assert profile.serving.args == {"dtype": "no", "seed": "2026-01-01", "num": 10}


def test_flag_values_keep_their_type(small: Path) -> None:
    small.write_text(PROFILE.replace("{dtype: half}", "{w: true, x: 1, y: 1.0, z: '1'}"))
    args = load(small).serving.args
    assert [(type(value), value) for value in args.values()] == [
        (bool, True),
        (int, 1),
        (float, 1.0),
        (str, "1"),
    ]


@given(st.integers(0, 2**40), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_sizes(number: int, unit: str, space: str) -> None:
    assert parse_size(f"{number}{space if unit else ''}{unit}") == number * UNITS[unit]
    assert parse_size(number) == number


@given(st.text() | st.floats() | st.booleans() | st.none() | st.integers(max_value=-1))
def test_a_size_is_a_whole_number_of_bytes_or_refused(value: object) -> None:
    try:
        size = parse_size(value)
    except ValueError as error:
        assert "allowed: " in str(error)
    else:
        assert isinstance(value, str) and size >= 0


@pytest.mark.parametrize("text", ["0.5B", "1.0001kB", "1,5GB", "1 mib", "1e3", " 1", "1\n", "-1"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: "):
        parse_size(text)


def test_no_profile_chosen(small: Path) -> None:
    with pytest.raises(BadInput, match="no profile is chosen") as raised:
        active()
    assert raised.value.exit_code == 2
    assert "orchestrate profile use NAME" in raised.value.hint
    assert "Known: small" in raised.value.hint


def test_the_option_wins_over_the_variable_over_use(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("by-option", "by-variable", "by-use"):
        small.with_stem(name).write_text(PROFILE.replace("small", name))
    use("by-use")
    assert active().name == "by-use"
    monkeypatch.setenv("ORCHESTRATE_PROFILE", "by-variable")
    assert active().name == "by-variable"
    assert active("by-option").name == "by-option"


def test_a_path_is_kept_whole(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    small.rename(elsewhere / "mine.yml")
    use("elsewhere/mine.yml")
    monkeypatch.chdir(elsewhere)
    assert active().path == elsewhere / "mine.yml"
    assert active("./mine.yml").name == "small"
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["active-profile"]


def test_what_is_chosen_but_gone_says_who_chose_it(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("small")
    small.rename(small.with_stem("smell"))
    with pytest.raises(BadInput) as raised:
        active()
    assert raised.value.message == (
        "there is no profile 'small' (chosen by 'orchestrate profile use')"
    )
    assert raised.value.hint == "did you mean 'smell'? (known: smell)"
    monkeypatch.setenv("ORCHESTRATE_PROFILE", "x/y.yml")
    with pytest.raises(BadInput, match=r"no profile file x/y.yml \(named by \$ORCHESTRATE_PROF"):
        active()


def test_derived_files_are_up_to_date() -> None:
    """To renew: 'orchestrate profile schema', and again with --reference."""
    shelf = paths.checkout()
    assert (shelf / "profiles/schema.json").read_text() == schema_text()
    assert (shelf / "docs/reference/profile.md").read_text() == reference()


def test_every_key_is_described() -> None:
    whole = [model.model_json_schema() for model in (Profile, Attached)]
    sections = [*whole, *(each for one in whole for each in one["$defs"].values())]
    for section in sections:
        assert section["additionalProperties"] is False
        assert section["description"]
        for key, field in section["properties"].items():
            assert field.get("description") or "$ref" in field, key


def test_choosing_does_not_import_pydantic() -> None:
    """'--help' of every verb imports the option; it must not wait for the catalog."""
    code = "import sys, orchestrator.cli.profile; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_is_found_with_its_answers(small: Path, tmp_path: Path) -> None:
    directory = tmp_path / "models/owner/big"
    directory.mkdir(parents=True)
    (directory / "model.json").write_text('{"description": "large"}')
    (directory / "config.json").write_text('{"num_hidden_layers": 2}')
    (directory / "answers.json").write_text('[{"question": "q", "answer": "a"}]')
    assert catalog.known() == ["owner/big", "tiny"]
    model = catalog.find("owner/big")
    assert model.description == "large"
    assert model.config == {"num_hidden_layers": 2}
    assert model.answers == [catalog.Answer("q", "a")]
    assert catalog.find("tiny").answers == []


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.json", "{\n  oops\n}", "config.json:2: is not JSON"),
        ("config.json", "[]", "config.json:1: does not hold an object"),
        ("answers.json", '[{"question": "q"}]', "answers.json:1: does not hold questions"),
        ("answers.json", "3", "answers.json:1: does not hold questions"),
    ],
)
def test_a_models_broken_file_is_named(
    file: str, content: str, expected: str, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "models/tiny" / file).write_text(content)
    with pytest.raises(BadInput, match=expected):
        catalog.find("tiny")


def test_an_unknown_model_names_the_nearest(small: Path) -> None:
    with pytest.raises(BadInput) as raised:
        catalog.find("tini")
    assert raised.value.hint == "did you mean 'tiny'? (known: tiny)"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7), ("7B", 7), ("2kB", 2_000), ("2MB", 2_000_000), ("2 GB", 2_000_000_000),
        ("2TB", 2_000_000_000_000), ("2KiB", 2_048), ("2MiB", 2_097_152),
        ("1.5GiB", 1_610_612_736), ("2TiB", 2_199_023_255_552),
    ],
)  # fmt: skip
def test_each_unit_of_a_size_is_what_its_name_says(text: str, size: int) -> None:
    assert parse_size(text) == size
