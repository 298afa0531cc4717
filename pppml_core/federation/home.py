"""A real site's home folder, as its people set it up: name, identity, policy, and the parties they pinned by hand."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pppml_core.errors import ConfigError
from pppml_core.federation.files import write_atomic
from pppml_core.federation.identity import (
    CARD_FILE,
    KEY_FILE,
    card,
    check_slug,
    fingerprint,
    load_identity,
    load_roster,
    new_identity,
    pin,
    read_card,
)
from pppml_core.federation.policy import POLICY_FILE, UNSTATED, Policy, careful_value, example
from pppml_core.federation.site_file import SITE_FILE, site_template
from pppml_core.federation.witnesses import begin_logs
from pppml_core.wire.messages import SERVER

_HEAD = """\
# What this site insists on. It stays here and no server can change it: a run that breaks a rule is refused before any training. Every rule
# stands here, also one that asks nothing (null): where one is missing, or all are, the site answers nothing, so that no text which is lost
# loosens a rule. Leave the last line the last. docs/policy.md explains each.
"""


@dataclass(frozen=True)
class Home:
    """What may be shown of a home: names and public identities."""

    folder: Path
    name: str
    public: bytes
    pinned: dict[str, bytes]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for scripts."""
        pinned = {name: _public(key) for name, key in sorted(self.pinned.items())}
        return {"home": str(self.folder), "name": self.name, **_public(self.public), "pinned": pinned}


def init_home(folder: Path, name: str, *, careful: bool = False) -> Home:
    """Make a home: a lasting identity under ``name``, pinned by itself, and, unless it is the coordinator's, a policy and a file about its
    data to edit.

    Those that are there are kept. ``careful``: the policy is that of a hospital, else that of a simulation, see :func:`policy_template`.

    Raises ConfigError for a name that is no slug, and where there is a home already.
    """
    check_slug(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # also one that was there
    if (folder / CARD_FILE).exists() and (folder / KEY_FILE).exists():
        raise ConfigError("there is a home already", place=str(folder), hint="pppml site show")
    for file, text in ((POLICY_FILE, policy_template(careful=careful)), (SITE_FILE, site_template())):
        if name != SERVER and not (folder / file).exists():
            write_atomic(folder / file, text.encode())
    # An identity without a card is what an interrupted call left.
    identity = load_identity(folder) if (folder / KEY_FILE).exists() else new_identity(folder)
    pin(folder, name, identity.public)
    if name != SERVER:
        begin_logs(folder, identity)
    write_atomic(folder / CARD_FILE, f"{card(name, identity.public)}\n".encode())
    return open_home(folder)


def open_home(folder: Path) -> Home:
    """The home in a folder. Raises ConfigError where it is missing, damaged, or readable by others."""
    public = load_identity(folder).public
    place = str(folder / CARD_FILE)
    if not (folder / CARD_FILE).is_file():
        raise ConfigError("the home is not finished", place=place, hint="call `pppml site init` again with the same home")
    name, written = read_card((folder / CARD_FILE).read_text(errors="replace"))
    if name is None or written != public:
        raise ConfigError("this is not the card of the identity beside it", place=place, hint="remove it, then call `pppml site init`")
    return Home(folder, name, public, load_roster(folder))


def read_public(given: str, party: str) -> bytes:
    """The public identity in a file or a text: base64, alone or after the party's name. Raises ConfigError where it names another."""
    try:
        path = Path(given)
        text = path.read_text(errors="replace") if path.is_file() else given
    except (OSError, ValueError):  # too long for a file name, or no name at all
        text = given
    name, public = read_card(text)
    if name not in (None, party):
        raise ConfigError(f"this is the card of {name}, not of {party}", place="name", hint=f"pin it as {name}, or ask {party} for its own")
    return public


def check_fingerprint(public: bytes, told: str) -> None:
    """Raise ConfigError unless ``told``, in any grouping, is the whole fingerprint of ``public``."""
    digits = "".join(told.split()).replace(":", "").lower()
    if not hmac.compare_digest(digits.encode(), fingerprint(public).replace(" ", "").encode()):
        hint = "compare with its owner over another channel; if they differ, somebody exchanged the key on its way"
        raise ConfigError(f"the fingerprint of this key is another one: {fingerprint(public)}", place="fingerprint", hint=hint)


def policy_template(*, careful: bool = False) -> str:
    """``policy.yaml``: every rule, explained. ``careful``: as a hospital begins; else as suits a simulation, in which one person runs all
    parties.
    """
    text = _HEAD
    for name, field in Policy.model_fields.items():
        value = careful_value(name) if careful else None if name in UNSTATED else field.default
        shown = f"\n# for example {name}: {json.dumps(example(name))}" if example(name) is not None else ""
        text += f"\n# {field.description}{shown}\n{name}: {json.dumps(value)}\n"
    return text


def _public(key: bytes) -> dict[str, str]:
    return {"public": base64.b64encode(key).decode(), "fingerprint": fingerprint(key)}
