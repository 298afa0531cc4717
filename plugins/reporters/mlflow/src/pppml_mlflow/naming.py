"""Names and values as MLflow takes them."""

from __future__ import annotations

import re

#: longest key of a metric or parameter, longest value of a parameter.
KEY, VALUE = 250, 6000


def as_key(name: str) -> str:
    """A name of letters, digits, ``_ - . / `` and spaces; other characters become ``_``.

    >>> as_key("dice (lesion)/test/global/a")
    'dice _lesion_/test/global/a'
    """
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:KEY]


def as_param(value: object) -> str:
    """A setting as text, cut where it is longer than MLflow keeps."""
    text = str(value)
    return text if len(text) <= VALUE else text[: VALUE - 4] + " ..."
