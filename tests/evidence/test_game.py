"""The distinguishing game against real encryption, and against what only looks like it.

``told_apart`` of encryption that hides everything has probability ``1 - confidence``: 1e-6 where the test needs it not to happen.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pppml_core.errors import PppmlError
from pppml_core.evidence.game import Game, distinguishing_game

KEY = os.urandom(32)
SURE = 1 - 1e-6


def update(world: int, size: int = 500) -> bytes:
    """An update that points one way or the other, with much that changes from message to message."""
    rng = np.random.default_rng(int.from_bytes(os.urandom(8), "little"))
    return ((0.02 if world else -0.02) + 0.02 * rng.standard_normal(size)).astype("<f4").tobytes()


def sealed(text: bytes) -> bytes:
    nonce = os.urandom(12)
    return b"PPPM" + nonce + AESGCM(KEY).encrypt(nonce, text, None)


def opened(message: bytes) -> int:
    text = AESGCM(KEY).decrypt(message[4:16], message[16:], None)
    return int(np.frombuffer(text, "<f4").mean() > 0)


def keystream(text: bytes, nonce: bytes = bytes(16)) -> bytes:
    run = Cipher(algorithms.AES(KEY), modes.CTR(nonce)).encryptor()
    return run.update(text) + run.finalize()


def blocks(text: bytes) -> bytes:
    run = Cipher(algorithms.AES(os.urandom(32)), modes.ECB()).encryptor()
    return run.update(text) + run.finalize()


def test_real_encryption_is_no_better_than_guessing_and_the_key_holder_reads_it() -> None:
    game = distinguishing_game(lambda w: sealed(update(w)), 400, 1, opened, SURE)
    assert game.result == "no_better_than_guessing"
    assert game.accuracy.low < 0.5 < game.accuracy.high
    assert game.accuracy.n == 200
    assert game.key_holder is not None
    assert game.key_holder.estimate == 1.0
    assert "No better than guessing" in game.words()
    assert "with the key 100.0%" in game.words()


def test_without_a_key_holder_who_can_tell_nothing_is_said() -> None:
    game = distinguishing_game(lambda w: sealed(update(w)), 200, 2, confidence=SURE)
    assert (game.result, game.key_holder) == ("inconclusive", None)
    # Two worlds that are one, or noise that nobody can open: there is nothing to find.
    for make, holder in ((lambda w: sealed(update(0)), opened), (lambda w: os.urandom(300), lambda m: m[0] & 1)):
        game = distinguishing_game(make, 200, 3, holder, SURE)
        assert game.result == "inconclusive"
        assert "no better" not in game.words().lower()


LIES: dict[str, tuple[Callable[[int], bytes], str]] = {
    "plaintext": (update, ""),
    "plaintext of few bytes": (lambda w: os.urandom(2000) + update(w, 20), ""),
    "one plain tensor in the middle": (lambda w: sealed(update(w, 2000)) + update(w, 100) + os.urandom(8000), ""),
    "deterministic encryption": (lambda w: keystream(np.full(500, w, "<f4").tobytes()), "repeats"),
    "deterministic in one part": (lambda w: os.urandom(256) + keystream(bytes([w]) * 16) + os.urandom(64), ""),
    "a nonce that is used again": (lambda w: keystream(update(w)), ""),
    "nonces of four bits": (lambda w: keystream(np.full(8, w, "<f4").tobytes(), bytes([os.urandom(1)[0] & 15]) * 16), ""),
    "telling length": (lambda w: sealed(bytes(100 + w)), "length"),
    "blocks that repeat within a message": (lambda w: blocks(bytes(4096) if w else os.urandom(4096)), "byte counts"),
    "padding of a compressed message": (lambda w: sealed(bytes(int(np.random.default_rng().integers(90, 100)) + 9 * w)), ""),
}


@pytest.mark.parametrize("name", LIES)
def test_what_is_no_encryption_is_told_apart(name: str) -> None:
    make, by = LIES[name]
    game = distinguishing_game(make, 600, 4, confidence=SURE)
    assert game.result == "told_apart"
    assert game.accuracy.low > 0.5
    assert game.told_by == by or not by
    assert f"give their contents away (by {game.told_by})" in game.words()


def test_a_key_holder_does_not_make_a_lie_better() -> None:
    game = distinguishing_game(update, 200, 5, lambda m: int(np.frombuffer(m, "<f4").mean() > 0), SURE)
    assert game.result == "told_apart"


def test_messages_of_no_world_are_named_right_half_of_the_time_and_flagged_as_often_as_said() -> None:
    rng = np.random.default_rng(6)
    games = [distinguishing_game(lambda w: rng.bytes(40), 200, seed, confidence=0.9) for seed in range(60)]
    flagged = sum(game.result == "told_apart" for game in games)
    # The exact interval of 100 coins at 90 % misses one half with probability 0.0886 at most: 24 of 60 or more have probability below 1e-8.
    assert flagged < 24
    right = sum(round(game.accuracy.estimate * game.accuracy.n) for game in games)
    assert abs(right - 3000) < 5 * np.sqrt(1500), "coins: beyond five standard deviations with probability below 1e-6"


def test_names_that_are_wrong_far_too_often_give_the_contents_away_as_well() -> None:
    made: list[int] = []

    def turned_around_after_a_hundred(world: int) -> bytes:
        made.append(world)
        return bytes([world ^ (len(made) > 100)])

    game = distinguishing_game(turned_around_after_a_hundred, 200, 10, lambda m: m[0] ^ 1, SURE)
    assert (game.accuracy.estimate, game.result) == (0.0, "told_apart")


def test_the_same_seed_chooses_the_same_worlds() -> None:
    def played() -> tuple[list[int], Game]:
        worlds: list[int] = []

        def make(world: int) -> bytes:
            worlds.append(world)
            return bytes([world])

        return worlds, distinguishing_game(make, 200, 7)

    one, other = played(), played()
    assert one == other
    assert 60 < sum(one[0]) < 140


def test_messages_may_be_empty_and_games_not_too_short() -> None:
    assert distinguishing_game(lambda w: b"", 200, 8, confidence=SURE).result == "inconclusive"
    assert distinguishing_game(lambda w: b"" if w else b"x", 200, 9).result == "told_apart"
    with pytest.raises(PppmlError, match="too few"):
        distinguishing_game(update, 100)
