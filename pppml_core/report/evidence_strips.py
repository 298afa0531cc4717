"""Strips of pictures for the page: read from the folder of records, embedded whole, told in words."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pppml_core.report import evidence_words as told
from pppml_core.report import words
from pppml_core.report.columns import Column
from pppml_core.report.evidence_rows import lied, rows
from pppml_core.report.records import Record, RunRecords

#: bytes of a strip that a page takes in, and what every PNG begins with.
LARGEST = 4_000_000
PNG = b"\x89PNG\r\n\x1a\n"


def strips(column: Column, label: str) -> list[dict[str, Any]]:
    """The strips of a defence as data URIs, with title, captions and alt text, in the order of its rows."""
    out = []
    for row in rows(column):
        mine = [(r, run) for run in column.runs for r in run.attacks if (r.get("vantage"), lied(r)) == (row.vantage, row.lying)]
        for record, run in mine:
            if (picture := _picture(run, record)) is None:
                continue
            uri, said = picture
            title = f"{label}: {record.get('attack')} by {told.who_short(row)}, round {record.get('round')}"
            outcome = str(record.get("outcome", "")).replace("_", " ")
            shown = "; ".join(_said(one) for one in said) or words.capital(outcome)
            sides = "Side by side: the original, the best blind guess without any attack, and the reconstruction"
            captions = [words.capital(_said(one)) for one in said]
            made = {"uri": uri, "title": title, "said": captions, "alt": f"{title}. {sides}. {shown}.", "outcome": outcome}
            out.append({**made, "kind": words.capital(told.kind(record))})
    return out


def _said(one: Mapping[str, Any]) -> str:
    rank = f", rank {one['rank']} of {one['gallery']} images" if "rank" in one and "gallery" in one else ""
    lesion = f", lesion drawn with a Dice of {one['dice']}" if "dice" in one else ""
    return f"{one.get('name', 'victim')}: {one.get('psnr', '–')} dB{rank}{lesion}"


def _picture(run: RunRecords, record: Record) -> tuple[str, list[Mapping[str, Any]]] | None:
    """A strip as a data URI, with its captions; None where the record names none, or none that can be shown."""
    name = record.get("pictures")
    if not isinstance(name, str) or Path(name).name != name:
        return None
    path = run.folder / "attacks" / name
    try:
        if path.stat().st_size > LARGEST or not (data := path.read_bytes()).startswith(PNG):
            return None
    except OSError:
        return None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}", _captions(data)


def _captions(data: bytes) -> list[Mapping[str, Any]]:
    """Of the chunk ``tEXt`` with the key ``Description``, as :mod:`pppml_core.evidence.strips` writes it."""
    at = len(PNG)
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        key, _, text = data[at + 8 : at + 8 + length].partition(b"\0")
        if (kind, key) == (b"tEXt", b"Description"):
            try:
                found = json.loads(text.decode("latin-1"))
            except ValueError:
                return []
            return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []
        at += 12 + length
    return []
