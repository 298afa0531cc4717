"""Settings of ``tenseal``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pppml_core import ComponentConfig


class TenSEALConfig(ComponentConfig):
    """Which scheme; everything else is planned."""

    scheme: Literal["bfv", "ckks"] = Field(
        "bfv", description="bfv adds exactly; ckks adds approximately, with an error that rounding removes"
    )
    preset: Literal["planned", "paper"] = Field(
        "planned",
        description="planned: the smallest ring and prime that hold the sums; paper: the CKKS parameters of the PPPML-HMI code "
        "(ring degree 8192, 218 bits, scale 2^26), for comparison only: decrypted numbers that were not rounded betray its key",
    )
    galois_keys: bool = Field(
        False, description="preset paper only: also make and send the rotation keys that its code makes and no sum needs (about 90 MB)"
    )

    @model_validator(mode="after")
    def _paper_is_ckks(self) -> Self:
        if self.preset == "paper" and self.scheme != "ckks":
            raise ValueError("preset paper is CKKS: set `scheme: ckks`")
        if self.galois_keys and self.preset != "paper":
            raise ValueError("galois_keys belongs to preset paper: no sum needs rotation keys")
        return self
