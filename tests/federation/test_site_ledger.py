"""A site's own account of what runs on its data cost together."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pppml_core.errors import PolicyRefusal
from pppml_core.federation.identity import Identity, new_identity
from pppml_core.federation.site_ledger import ACCOUNT_FILE, Account, Claim, Limits, claim_of, read_account, total
from pppml_core.federation.witnesses import begin_logs
from pppml_core.interfaces.privacy import PrivacyStatement

FOUR = Claim(4.0, 1e-5, "example", "add-remove")
ALL = Limits(8.0, 1e-4)


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return new_identity(tmp_path)


@pytest.fixture
def account(tmp_path: Path, identity: Identity) -> Account:
    begin_logs(tmp_path, identity)
    return Account(tmp_path, identity)


def run(number: int) -> bytes:
    return bytes([number]) * 16


def test_epsilons_and_deltas_are_added(account: Account, tmp_path: Path, identity: Identity) -> None:
    for number in (1, 2):
        account.reserve(run(number), FOUR, ALL, {"name": f"study-{number}"})
    with pytest.raises(
        PolicyRefusal,
        match=r"^total_epsilon: this run costs epsilon 4 and delta 1e-05, more.*; here: 2 others have cost epsilon 8 and delta 2e-05",
    ):
        account.reserve(run(3), FOUR, ALL, {})
    assert [entry["about"]["name"] for entry in read_account(tmp_path, identity.public)] == ["study-1", "study-2"]
    account.reserve(run(3), FOUR, Limits(12.0, 1e-4), {})
    assert total([FOUR] * 3) == Claim(12.0, pytest.approx(3e-5), "example", "add-remove")


def test_deltas_alone_may_be_too_much(account: Account) -> None:
    account.reserve(run(1), Claim(0.1, 6e-5, "example", "add-remove"), ALL, {})
    with pytest.raises(PolicyRefusal, match=r"more than is left of epsilon 8 and delta 0\.0001"):
        account.reserve(run(2), Claim(0.1, 6e-5, "example", "add-remove"), ALL, {})


def test_a_run_is_entered_once_and_never_becomes_dearer(account: Account, tmp_path: Path, identity: Identity) -> None:
    for claim in (FOUR, FOUR, Claim(3.0, 1e-5, "example", "add-remove"), Claim(0.0)):
        account.reserve(run(1), claim, Limits(4.0, 1e-5), {})
    (entry,) = read_account(tmp_path, identity.public)
    assert entry["epsilon"] == 4.0
    for dearer in (Claim(4.1, 1e-5, "example", "add-remove"), Claim(4.0, 2e-5, "example", "add-remove"), Claim(math.inf)):
        for limits in (ALL, Limits()):
            with pytest.raises(PolicyRefusal, match="was accepted with epsilon 4 and delta 1e-05, and would now cost"):
                account.reserve(run(1), dearer, limits, {})
    with pytest.raises(PolicyRefusal, match="was accepted"):
        account.reserve(run(1), Claim(1.0, 0.0, "site", "zero-out"), ALL, {})


def test_different_units_have_no_sum(account: Account) -> None:
    account.reserve(run(1), FOUR, ALL, {})
    account.reserve(run(2), Claim(0.0), ALL, {})  # of nothing
    with pytest.raises(PolicyRefusal, match=r"here: claims .* cannot be added: example \(add-remove\) and patient \(add-remove\)"):
        account.reserve(run(3), Claim(1.0, 1e-6, "patient", "add-remove"), ALL, {})
    with pytest.raises(PolicyRefusal, match="cannot be added"):
        account.reserve(run(3), Claim(1.0, 1e-6, "example", "replace"), ALL, {})


def test_two_at_a_time_do_not_both_take_what_is_left(tmp_path: Path, identity: Identity) -> None:
    begin_logs(tmp_path, identity)

    def take(number: int) -> bool:
        try:
            Account(tmp_path, identity).reserve(run(number), FOUR, ALL, {})
        except PolicyRefusal:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(take, range(8)))
    assert sum(taken) == 2
    assert len(read_account(tmp_path, identity.public)) == 2


def test_an_entry_is_on_the_disk_before_the_run_is_accepted(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(ACCOUNT_FILE):
            raise OSError(28, "No space left on device")

    account.reserve(run(1), FOUR, ALL, {})
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            account.reserve(run(2), FOUR, ALL, {})
    assert account.refusal(run(2), FOUR, Limits(7.0)) is not None


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"epsilon": None},
        {"epsilon": "inf", "unit": "example", "adjacency": "add-remove"},
        {"epsilon": -1.0, "unit": "example", "adjacency": "add-remove"},
        {"epsilon": math.nan, "unit": "example", "adjacency": "add-remove"},
        {"epsilon": True, "unit": "example", "adjacency": "add-remove"},
        {"epsilon": 1.0, "delta": 1.0, "unit": "example", "adjacency": "add-remove"},
        {"epsilon": 1.0, "delta": "0", "unit": "example", "adjacency": "add-remove"},
        {"epsilon": 1.0, "unit": "", "adjacency": "add-remove"},
        {"epsilon": 1.0, "unit": "example", "adjacency": None},
    ],
)
def test_what_is_no_claim_protects_nobody(plain: dict[str, Any]) -> None:
    assert claim_of(plain, shares=True).epsilon == math.inf
    assert claim_of(plain, shares=False) == Claim(0.0)


def test_the_claim_of_a_statement() -> None:
    statement = PrivacyStatement("dp-sgd", 4.0, 1e-5, "example", "add-remove")
    assert claim_of(statement, shares=True) == claim_of(statement.to_dict(), shares=True) == FOUR
