"""Settings of `he-key-recovery`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core import ComponentConfig


class HeKeyRecoveryConfig(ComponentConfig):
    """`he-key-recovery`: a CKKS secret key from sums of ciphertexts and what was published of them."""

    published: Literal["as-run", "full-precision"] = Field(
        "as-run",
        description="what the attacker has of the decrypted sum: as-run: whole numbers, as this run releases them; full-precision: the "
        "numbers with the error of decryption in them, as the paper's code publishes them (of its preset only)",
    )
    tries: int = Field(2, ge=1, le=10, description="sums that are attacked; one in half a million cannot be solved")
