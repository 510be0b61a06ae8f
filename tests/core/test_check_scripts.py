"""The look for secrets sees what it says it sees."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

found_in = runpy.run_path(str(Path(__file__).parents[2] / "scripts/check-secrets"))["found_in"]

SECRETS = {
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a token of hpsearch": "hps_" + "aB3-" * 10 + "xyz",
    "a key of AWS": "AKIA" + "ABCDEFGH12345678",
    "a token of GitHub": "ghp_" + "a1" * 18,
    "a password in a URL": "postgresql://user:" + "hunter2hunter2@db/x",
    "a JSON web token": "eyJ" + "hbGciOiJIUzI1" + ".eyJ" + "zdWIiOiIxMjM0" + ".SflKxwRJSMeKKF2",
}


@pytest.mark.parametrize("what", SECRETS)
def test_known_forms_are_found(what: str) -> None:
    assert found_in(f"first\nkey = '{SECRETS[what]}'\n") == [(2, what)]
    assert found_in(f"key = '{SECRETS[what]}'  # not a secret\n") == []


def test_what_only_looks_like_one_is_not() -> None:
    assert found_in("postgresql://USER:PASSWORD@HOST/DATABASE hps_… sha256 " + "0f" * 32) == []
