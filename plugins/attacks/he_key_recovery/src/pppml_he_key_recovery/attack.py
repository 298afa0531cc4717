"""``he-key-recovery``: can whoever stores ciphertexts, and reads the published sum, solve for the secret key?

Fresh ciphertexts are made with the run's own back end and parameters, of random numbers under a key of their own: one for each site, their
sum, and its decryption. The attacker holds the ciphertexts and what is published of the sum; as a control it is given the numbers with the
error of decryption in them. The run's own ciphertexts and published sums are not attacked.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pppml_core.errors import PppmlError
from pppml_core.interfaces.attack import AdversaryView, Attack, AttackContext, Verdict
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.values import ValueSpec
from pppml_he_key_recovery.config import HeKeyRecoveryConfig
from pppml_he_key_recovery.recovery import is_key, read, recover
from pppml_he_key_recovery.seal import Numbers, Seal


class HeKeyRecovery(Attack):
    """The attack of that name. It makes its own ciphertexts, so it reads no view of the run."""

    reads_view = False
    config: HeKeyRecoveryConfig

    def run(self, view: AdversaryView, budget: Any, ctx: AttackContext) -> Verdict:
        """Attack sums of as many ciphertexts as the run has sites."""
        section = getattr(ctx.config.aggregator, "backend", None)
        if section is None:
            return Verdict("not_applicable", "this run encrypts nothing homomorphically")
        if not (ctx.vantage.server or ctx.vantage.sites):
            return Verdict("not_applicable", "the ciphertexts and the sum are with the server and the sites; use vantage server")
        backend: HEBackend = ctx.parts.registry.build("he-backend", section)
        largest = 2 ** (ctx.config.encoding.bits - 1) - 1
        bound = None if getattr(section, "preset", None) == "paper" else largest
        full = self.config.published == "full-precision"
        sites = len(ctx.setting.examples)
        one = backend.plan(ValueSpec(1, "integer", bound), sites)
        if one.arithmetic == "exact":
            return Verdict("not_applicable", f"{one.scheme} decrypts to exact integers, in which there is nothing of the key")
        if one.backend != "tenseal":
            return Verdict("not_applicable", f"this attack reads the bytes of TenSEAL, not of {one.backend}")
        if full and bound is not None:
            return Verdict("not_applicable", "this run releases whole numbers; only the paper's code publishes them in full precision")
        params = backend.plan(ValueSpec(2 * int(one.details["slots"]), "integer", bound), sites)
        # Real numbers, in units of the largest integer of the fixed point, are released as its integers.
        return self._attacked(backend, params, sites, bound, 1.0 if bound is not None else 1.0 / largest, full)

    def _attacked(self, backend: HEBackend, params: HEParams, sites: int, bound: int | None, step: float, full: bool) -> Verdict:
        reader = Seal(params)
        for _ in range(self.config.tries):
            public, secret = backend.keygen(params)
            generator = np.random.default_rng()
            updates = [_update(generator, params.length, bound) for _ in range(sites)]
            encrypted = [backend.encrypt(params, public, update) for update in updates]
            total = encrypted[0]
            for other in encrypted[1:]:
                total = backend.add(params, total, other)
            decrypted = backend.decrypt(params, secret, total)
            secret.wipe()
            published = decrypted if full else np.rint(decrypted / step) * step
            control, found = (self._solved(reader, total, numbers) for numbers in (decrypted, published))
            if control is not None or found is not None:
                break
        return _verdict(reader, encrypted[0], updates[0], control, found, full, params)

    def _solved(self, reader: Seal, total: bytes, numbers: Numbers) -> Numbers | None:
        """The key, if what was solved for is one."""
        try:
            key = recover(reader, reader.ciphertexts(total), list(numbers.reshape(2, -1)))
        except (PppmlError, OverflowError, ValueError):
            return None
        return key if is_key(key) else None


def _update(generator: np.random.Generator, length: int, bound: int | None) -> Numbers:
    if bound is None:
        return generator.normal(size=length)
    return generator.integers(-bound, bound, length, endpoint=True).astype(np.float64)


def _verdict(
    reader: Seal, ciphertext: bytes, update: Numbers, control: Numbers | None, found: Numbers | None, full: bool, params: HEParams
) -> Verdict:
    def correlation(key: Numbers | None) -> float:
        if key is None:
            return 0.0
        numbers = read(reader, ciphertext, key)
        return float(np.corrcoef(numbers, update[: len(numbers)])[0, 1])

    full_words = "in full precision, as the paper's code publishes it and this run does not"
    what = full_words if full else "as whole numbers, as this run releases them"
    scheme = f"{params.backend} {params.scheme}, ring degree {reader.degree}, scale 2^{math.log2(float(params.details['scale'])):g}"
    passed = control is not None and correlation(control) > 0.99
    made = f"on fresh ciphertexts of the run's parameters, not on the run's own ({scheme})"
    metrics = {"key_recovered": found is not None, "update_correlation": correlation(found)}
    told = {"what": "the decrypted numbers in full precision", "passed": passed, "update_correlation": correlation(control)}
    guess = {"what": "no key", "update_correlation": 0.0}
    if found is not None and metrics["update_correlation"] > 0.99:
        text = f"the whole secret key follows from two chunks of a sum published {what}, and with it one site's numbers, {made}"
        return Verdict("recovered", text, metrics, told, guess)
    if not passed:
        return Verdict("inconclusive", f"not even the numbers in full precision gave the key, {made}", metrics, told, guess)
    text = f"the numbers in full precision give the key, those published {what} do not, {made}"
    return Verdict("not_shown_to_leak", text, metrics, told, guess)
