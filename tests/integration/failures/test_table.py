"""The page is made from the table, and every drill of the table is one that a test holds."""

from __future__ import annotations

from drilling.docs import END, PAGE, page
from drilling.table import TABLE, Ends


def test_the_page_says_what_the_table_says():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(END) == 1
    assert page(text) == text, "python -m drilling.docs, in tests/integration"


def test_no_drill_is_there_twice():
    assert len({drill.name for drill in TABLE}) == len(TABLE)


def test_nothing_may_end_in_a_wrong_sum():
    """There is no such end. What the table lets a run lose is a round, or a start."""
    lost = {drill.ends for drill in TABLE if not drill.ends.survives}
    assert lost <= {Ends.LOST, Ends.RESUMED_LOST, Ends.REFUSED, Ends.STOPPED}
