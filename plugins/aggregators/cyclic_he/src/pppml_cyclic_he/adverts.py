"""Adverts: the fresh keys of an attempt, signed by the party they belong to, and what all parties agree on before anything is encrypted.

Each site advertises an X25519 key, to which hops are sealed; an initiator adds the public key of its ring. An advert names, under its
signature, the binding (run, round, attempt, roster, model, terms), the parameters and the rings of whoever signed it, so that a peer with
another model is told apart from a forger. The server adds a signed key of its own, to which what is released is sealed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from pppml_core.errors import InconsistentModel, PolicyRefusal, WireError
from pppml_core.federation.identity import KEY_BYTES, statement, verify
from pppml_core.wire.codec import sha256_of
from pppml_core.wire.messages import SERVER, Body
from pppml_cyclic_he.setting import Setting, read

Roster = Mapping[str, bytes]
Sign = Callable[[bytes], bytes]


def make(setting: Setting, site: str, binding: bytes, sign: Sign, hop: bytes, public: bytes) -> dict[str, Any]:
    """A site's advert: its X25519 public key and, of an initiator, the public key of its ring (else empty)."""
    advert = {"binding": binding, "params": setting.params.sha256, "rings": setting.rings.sha256, "hop": hop, "public": public}
    return {**advert, "signature": sign(_statement(site, advert))}


def check(setting: Setting, site: str, advert: Body, binding: bytes, roster: Roster) -> None:
    """Raise unless ``advert`` is signed by ``site`` as pinned, for this binding, these parameters and these rings.

    InconsistentModel: a genuine advert for another model or other terms. WireError, PolicyRefusal: anything else.
    """
    for name in ("binding", "params", "rings", "public", "signature"):
        read(advert, name, bytes)
    read(advert, "hop", bytes, length=KEY_BYTES)
    if site not in roster:
        raise PolicyRefusal(f"no identity is pinned for {site}")
    verify(roster[site], advert["signature"], _statement(site, advert), site)
    if advert["binding"] != binding:
        raise InconsistentModel(f"{site} takes part with another model, other terms, or in another attempt", place="advertise")
    if advert["params"] != setting.params.sha256 or advert["rings"] != setting.rings.sha256:
        raise PolicyRefusal(f"{site} uses other encryption parameters or other rings")
    if bool(advert["public"]) != (setting.rings.ring_of(site) is not None):
        raise WireError(f"the advert of {site} does not have the keys of its role", place="advertise")


def make_server_key(binding: bytes, sign: Sign, key: bytes) -> dict[str, Any]:
    """The server's X25519 public key of this attempt, signed."""
    return {"key": key, "signature": sign(statement("cyclic-he server key", binding, {"key": key}))}


def check_all(setting: Setting, body: Body, binding: bytes, roster: Roster) -> dict[str, Any]:
    """What a site keeps of everybody's adverts: ``hops`` (site -> key), ``publics`` (one a ring), ``server`` (key), ``digest``.

    Every identity is this site's own pinned one, and n is the number of different ones. ``digest`` names all of it; every later signature
    holds it, so that sites which were shown different adverts refuse each other.
    """
    order, given = setting.rings.order, read(body, "adverts", dict)
    if set(given) != set(order):
        raise WireError("there is not one advert of each site of the cohort", place="keys")
    for site in order:
        check(setting, site, given[site], binding, roster)
    if len({roster[site] for site in order}) != len(order):
        raise PolicyRefusal("two sites of the cohort have one identity")
    if SERVER not in roster:
        raise PolicyRefusal("no identity is pinned for the server")
    server = read(body, "server", dict)
    key = read(server, "key", bytes, length=KEY_BYTES)
    verify(roster[SERVER], server.get("signature"), statement("cyclic-he server key", binding, {"key": key}), SERVER)
    return {
        "hops": {site: given[site]["hop"] for site in order},
        "publics": [given[site]["public"] for site in setting.rings.initiators],
        "server": key,
        "digest": digest(binding, body),
    }


def digest(binding: bytes, body: Body) -> bytes:
    """The hash of everybody's adverts and of the server's key, within an attempt."""
    return sha256_of({"binding": binding, "adverts": body["adverts"], "server": body["server"]})


def _statement(site: str, advert: Body) -> bytes:
    public = hashlib.sha256(advert["public"]).digest()
    keys = {"site": site, "params": advert["params"], "rings": advert["rings"], "hop": advert["hop"], "public": public}
    return statement("cyclic-he advert", advert["binding"], keys)
