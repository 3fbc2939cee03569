"""Provenance documents as indexes have them, and wrong ones."""

from __future__ import annotations

from typing import Any

import pytest
from support.index import GITHUB, provenance

from orchestrator.image.lock.publishers import LONGEST, publisher_in

SHA = "1" * 64
BUNDLE = provenance(SHA, GITHUB)["attestation_bundles"][0]


def bundles(*publishers: dict[str, Any]) -> dict[str, Any]:
    return {"attestation_bundles": [BUNDLE | {"publisher": each} for each in publishers]}


@pytest.mark.parametrize(
    ("publisher", "told"),
    [
        (GITHUB, "GitHub: repository makers/NAME, workflow release.yml"),
        (
            GITHUB | {"environment": "pypi"},
            "GitHub: environment pypi, repository makers/NAME, workflow release.yml",
        ),
        ({"kind": "Google", "email": "a@example.org"}, "Google: email a@example.org"),
        (
            {"kind": "GitLab", "repository": "a/b", "workflow_filepath": "ci.yml"},
            "GitLab: repository a/b, workflow_filepath ci.yml",
        ),
    ],
)
def test_a_publisher_is_told_by_what_names_it(publisher: dict[str, Any], told: str) -> None:
    assert publisher_in(bundles(publisher), SHA) == told


def test_each_of_several_counts_once_in_any_order() -> None:
    google = {"kind": "Google", "email": "a@example.org"}
    told = publisher_in(bundles(GITHUB, google, GITHUB), SHA)
    assert told == publisher_in(bundles(google, GITHUB), SHA)
    assert told.count(";") == 1


def test_a_long_name_is_cut() -> None:
    assert len(publisher_in(bundles({"kind": "Google", "email": "a" * 9999}), SHA)) == LONGEST


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"attestation_bundles": []},
        {"attestation_bundles": None},
        {"attestation_bundles": [BUNDLE | {"attestations": []}]},
        {"attestation_bundles": [BUNDLE | {"publisher": None}]},
        {"attestation_bundles": [BUNDLE | {"publisher": {"repository": "a/b"}}]},
        {"attestation_bundles": [BUNDLE | {"attestations": [{"envelope": {"statement": "%"}}]}]},
        provenance("2" * 64, GITHUB),
    ],
)
def test_what_does_not_fit_is_an_error(document: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        publisher_in(document, SHA)
