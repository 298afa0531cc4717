"""What the parties of ``he-fedavg`` sign, and how it is checked: adverts of agreement keys, and the one key pair of an attempt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pppml_core.errors import InconsistentModel, WireError
from pppml_core.federation.identity import KEY_BYTES, statement, verify
from pppml_core.interfaces.aggregation import Body, ServerContext, SiteContext
from pppml_core.wire.codec import sha256_of


def advert(ctx: SiteContext, key: bytes, parameters: bytes) -> dict[str, bytes]:
    """A site's fresh agreement key (X25519, 32 bytes) and the hash of its HE parameters, signed together with its binding."""
    signature = ctx.sign(statement("he-fedavg advert", ctx.binding, {"site": ctx.site, "key": key, "parameters": parameters}))
    return {"key": key, "binding": ctx.binding, "parameters": parameters, "signature": signature}


def checked_key(ctx: SiteContext | ServerContext, site: str, body: object, parameters: bytes) -> bytes:
    """The agreement key of a site's advert.

    Raises WireError for an advert that is malformed or not signed by that site, InconsistentModel where the site, by its own signed word,
    takes part with another model, other terms or other parameters.
    """
    if site not in ctx.cohort:
        raise WireError(f"{site!r:.80} is not in the cohort", place="advert")
    key, binding, theirs, signature = (text(body, name) for name in ("key", "binding", "parameters", "signature"))
    if len(key) != KEY_BYTES:
        raise WireError(f"the key of {site} has another length", place="advert")
    verify(ctx.roster[site], signature, statement("he-fedavg advert", binding, {"site": site, "key": key, "parameters": theirs}), site)
    if binding != ctx.binding:
        raise InconsistentModel(f"{site} takes part with another model, other terms or in another round", place="advert")
    if theirs != parameters:
        raise InconsistentModel(f"{site} has other parameters of homomorphic encryption", place="advert", hint="install the same versions")
    return key


def key_statement(binding: bytes, maker: str, public: bytes, parameters: bytes, keys: Mapping[str, bytes]) -> bytes:
    """What the key maker signs: its public key, and for whom it sealed the secret one."""
    holders = sha256_of([[site, keys[site]] for site in sorted(keys)])
    body = {"maker": maker, "public": hashlib.sha256(public).digest(), "parameters": parameters, "holders": holders}
    return statement("he-fedavg key", binding, body)


def box_context(binding: bytes, maker: str, recipient: str, public: bytes) -> bytes:
    """Where a sealed secret key belongs: nowhere else does its box open."""
    body = {"maker": maker, "recipient": recipient, "public": hashlib.sha256(public).digest()}
    return statement("he-fedavg box", binding, body)


def text(body: object, name: str) -> bytes:
    """A field that must be bytes. Raises WireError."""
    value: Any = body.get(name) if isinstance(body, Mapping) else None
    if not isinstance(value, bytes):
        raise WireError(f"{name!r} is missing or no bytes", place="he-fedavg")
    return value


def names(body: Body, name: str) -> tuple[str, ...]:
    """A field that must be a list of different names. Raises WireError."""
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or len(set(value)) != len(value):
        raise WireError(f"{name!r} is no list of different sites", place="he-fedavg")
    return tuple(value)
