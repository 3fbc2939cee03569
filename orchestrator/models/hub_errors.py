"""Why the hub does not give something, in words for people: its own reason, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from httpx import codes

from orchestrator.core.download import Unavailable, wished
from orchestrator.core.errors import UserError
from orchestrator.core.redact import Redactor

#: Statuses of a hub that has too much to do.
TOO_BUSY = (429, 500, 502, 503, 504)
TOKEN = "set HF_TOKEN to a token with read access"
TOKEN_RIGHTS = (
    "Set HF_TOKEN to a token of type 'read'. A fine-grained one needs read access to this"
    " repository, or to all public gated ones: https://huggingface.co/settings/tokens."
)
OTHER_WAY = "take a directory that has the files (model pull: --from DIRECTORY)"
#: Characters of the hub's own words that a message shows.
MOST_WORDS = 300
#: Names of errors in the hub's answers (X-Error-Code).
GATED, NO_REPOSITORY, NO_REVISION = "GatedRepo", "RepoNotFound", "RevisionNotFound"
DISABLED = "Access to this resource is disabled."


def refused(repository: str, file: str, error: Unavailable) -> UserError:
    """Why a file of a listed commit does not come."""
    from huggingface_hub import constants

    what = f"{repository}: cannot download {file} from the hub"
    if error.status is None:
        return UserError(f"{what}: {error.message}", "Run it again: it resumes where it stopped.")
    if error.host and error.host != urlsplit(constants.ENDPOINT).netloc:
        return UserError(
            f"{what}: {error.host}, where the hub keeps it, answers HTTP {error.status}",
            "A proxy or a firewall may not let you reach that host. Run it again: it resumes.",
        )
    return _refusal(what, repository, error.status, error.headers, "")


@contextmanager
def explained(repository: str, revision: str) -> Iterator[None]:
    """The library's errors as one message each."""
    from huggingface_hub import errors

    web_error = errors.HTTPError  # type: ignore[attr-defined]  # of the client that it uses
    what = f"{repository} at {revision[:12]}"
    try:
        yield
    except errors.HfHubHTTPError as error:
        answer, headers = error.response, dict(error.response.headers)
        # The library knows some without a code, by their address and status.
        code = (
            NO_REPOSITORY
            if isinstance(error, errors.RepositoryNotFoundError)
            and not isinstance(error, errors.GatedRepoError)
            else ""
        )
        known = {"x-error-code": code} if code and "x-error-code" not in headers else {}
        raise _refusal(
            what, repository, answer.status_code, headers | known, error.server_message or ""
        ) from None
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{what}: the hub's answer is not what a hub says",
            f"Check HF_ENDPOINT, or {OTHER_WAY}.",
        ) from None
    except (web_error, OSError, ValueError) as error:
        said = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise UserError(
            f"{what}: the hub does not answer: {_clean(said)}", f"Without network, {OTHER_WAY}."
        ) from None


def _refusal(
    what: str, repository: str, status: int, headers: Mapping[str, str], words: str
) -> UserError:
    """An answer of the hub that is an error: by its code, else by its status."""
    headers = {name.lower(): value for name, value in headers.items()}
    code = headers.get("x-error-code", "")
    said = _clean(words or headers.get("x-error-message", ""))
    why, hint = _why(repository, status, code, said)
    if status == 429 and (seconds := wished(headers)):
        hint = f"Try again in {math.ceil(seconds)} s. {hint}"
    own = f'. It says: "{said}"' if said and said != code and said not in why else ""
    return UserError(f"{what}: {why}{own}", hint)


def _why(repository: str, status: int, code: str, said: str) -> tuple[str, str]:
    """What is wrong, and what to do: by the code, which says more, else by the status."""
    if code == GATED:
        return _gated(repository, status, said)
    general = (
        f"the hub refused it: HTTP {status} {codes.get_reason_phrase(status)}",
        "Try again later." if status in TOO_BUSY else f"If it needs permission, {TOKEN}.",
    )
    known = DISABLED if said == DISABLED else code
    return BY_CODE.get(known) or _by_status(bool(_token())).get(status) or general


BY_CODE = {
    NO_REVISION: (
        "the repository has no such commit, branch or tag",
        "It may have been rewritten: see its history on the hub, and use another revision.",
    ),
    NO_REPOSITORY: (
        "the hub has no such repository, or it is private",
        f"Check the name; for a private repository, {TOKEN}.",
    ),
    DISABLED: ("the hub has disabled this repository", "Use another repository."),
}


def _by_status(token: bool) -> dict[int, tuple[str, str]]:
    gone = "The hub no longer has it, or never had: pin another revision in the profile."
    more = "" if token else f" The limit is higher with a token: {TOKEN}."
    return {
        401: (
            "Hugging Face rejected the token (401)",
            "It comes from HF_TOKEN, else from 'hf auth login'. Renew or remove it.",
        )
        if token
        else (
            "the hub wants to know who asks (401), and no token is set",
            f"Check the name; for a private or gated repository, {TOKEN}.",
        ),
        403: ("the token does not permit it (403)", TOKEN_RIGHTS),
        404: ("the hub does not have it (404)", gone),
        410: ("the hub does not have it (410)", gone),
        429: ("the hub was asked too often (429)", f"Run it again then: it resumes.{more}"),
    }


def _gated(repository: str, status: int, said: str) -> tuple[str, str]:
    page = f"https://huggingface.co/{repository}"
    if "token" in said.lower() and status == 403:  # "… in your fine-grained token settings …"
        return "the repository is gated, and the token does not permit it", TOKEN_RIGHTS
    why = "the hub requires that its terms are accepted first"
    if "review" in said.lower():
        return why, f"They were requested: wait for its authors ({page}), or use another model."
    if _token():
        return why, f"Accept them on {page}, as the user whose token this is."
    return why, f"Accept them on {page}, then {TOKEN}."


def _clean(words: str) -> str:
    """Foreign words as one short line, without the token."""
    line = Redactor([token] if (token := _token()) else []).clean(" ".join(words.split()))
    return line if len(line) <= MOST_WORDS else f"{line[:MOST_WORDS]}…"


def _token() -> str:
    from huggingface_hub import get_token

    return get_token() or ""
