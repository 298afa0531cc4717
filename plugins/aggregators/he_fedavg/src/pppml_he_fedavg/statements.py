"""What the parties of ``he-fedavg`` sign, and how it is checked.

Adverts of agreement keys, the one key pair of an attempt, and the list of sites whose sum may be decrypted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pppml_core.errors import InconsistentModel, WireError
from pppml_core.federation.identity import KEY_BYTES, statement, verify
from pppml_core.interfaces.aggregation import Body, ServerContext, SiteContext
from pppml_core.wire.codec import sha256_of


class Advert(NamedTuple):
    """What a site has signed for an attempt: its fresh agreement key (X25519) and the fewest sites of a sum it takes part in."""

    key: bytes
    fewest: int


def advert(ctx: SiteContext, mine: Advert, parameters: bytes) -> dict[str, Any]:
    """A site's advert, signed together with its binding and the hash of its HE parameters."""
    signature = ctx.sign(_advert_statement(ctx.site, ctx.binding, mine, parameters))
    return {**mine._asdict(), "binding": ctx.binding, "parameters": parameters, "signature": signature}


def checked(ctx: SiteContext | ServerContext, site: str, body: object, parameters: bytes) -> Advert:
    """A site's advert.

    Raises WireError for one that is malformed or not signed by that site, InconsistentModel where the site, by its own signed word, takes
    part with another model, other terms or other parameters.
    """
    if site not in ctx.cohort:
        raise WireError(f"{site!r:.80} is not in the cohort", place="advert")
    key, binding, theirs, signature = (text(body, name) for name in ("key", "binding", "parameters", "signature"))
    fewest = body.get("fewest") if isinstance(body, Mapping) else None
    if len(key) != KEY_BYTES or type(fewest) is not int:
        raise WireError(f"the advert of {site} is malformed", place="advert")
    found = Advert(key, fewest)
    verify(ctx.roster[site], signature, _advert_statement(site, binding, found, theirs), site)
    if binding != ctx.binding:
        raise InconsistentModel(f"{site} takes part with another model, other terms or in another round", place="advert")
    if theirs != parameters:
        raise InconsistentModel(f"{site} has other parameters of homomorphic encryption", place="advert", hint="install the same versions")
    return found


def _advert_statement(site: str, binding: bytes, said: Advert, parameters: bytes) -> bytes:
    return statement("he-fedavg advert", binding, {"site": site, "parameters": parameters, **said._asdict()})


def key_statement(binding: bytes, maker: str, public: bytes, parameters: bytes, adverts: Mapping[str, Advert]) -> bytes:
    """What the key maker signs: its public key, and for whom it sealed the secret one."""
    holders = sha256_of([[site, *adverts[site]] for site in sorted(adverts)])
    body = {"maker": maker, "public": hashlib.sha256(public).digest(), "parameters": parameters, "holders": holders}
    return statement("he-fedavg key", binding, body)


def box_context(binding: bytes, maker: str, recipient: str, public: bytes) -> bytes:
    """Where a sealed secret key belongs: nowhere else does its box open."""
    body = {"maker": maker, "recipient": recipient, "public": hashlib.sha256(public).digest()}
    return statement("he-fedavg box", binding, body)


def agreement(binding: bytes, site: str, sites: Sequence[str]) -> bytes:
    """What a site signs when it will take part in no sum of this round but the one over ``sites``."""
    return statement("he-fedavg agreement", binding, {"site": site, "sites": sorted(sites)})


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
