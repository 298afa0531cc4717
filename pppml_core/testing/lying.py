"""A server that lies: the honest coordinator with changed operations, replies or outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pppml_core.interfaces.aggregation import Coordinator, ServerContext, Session
from pppml_core.wire.messages import Body, Exchange, ExchangeOutcome, Operation, Outcome

Edit = Callable[[Operation], Operation]
EditReply = Callable[[str, str, Body], Body]
EditOutcome = Callable[[Operation, Outcome], Outcome]


def edited(
    session: Session,
    ctx: ServerContext,
    edit: Edit = lambda operation: operation,
    *,
    replies: EditReply | None = None,
    outcomes: EditOutcome = lambda operation, outcome: outcome,
) -> Coordinator:
    """The honest server with lies in it, for ``SessionHarness(..., coordinate=...)``::

        def two_lists(session, ctx):
            def edit(operation):
                if operation.stage != "unmask":
                    return operation
                return replace(operation, bodies={**operation.bodies, "a": {**operation.bodies["a"], "alive": ["a", "b", "c"]}})
            return edited(session, ctx, edit)

    Args:
        session: the server's.
        ctx: the server's.
        edit: operation -> the operation that is performed instead. What all sites get besides their own is in ``operation.common``.
        replies: ``(stage, site, body) -> body`` the honest code is shown instead, whether a fold takes the replies or not (of exchanges).
        outcomes: ``(operation, outcome) -> outcome`` the honest code is shown instead, after ``replies``.

    """
    coordinator = session.coordinate(ctx)
    try:
        asked = next(coordinator)
        while True:
            several = isinstance(asked, Sequence)
            performed = [_shown(edit(operation), replies) for operation in (asked if isinstance(asked, Sequence) else [asked])]
            answer: Any = yield performed if several else performed[0]
            shown = [
                outcomes(operation, _with_replies(operation, outcome, replies))
                for operation, outcome in zip(performed, answer if several else [answer], strict=True)
            ]
            asked = coordinator.send(shown if several else shown[0])
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        coordinator.close()


def _shown(operation: Operation, replies: EditReply | None) -> Operation:
    if replies is None or not isinstance(operation, Exchange) or operation.fold is None:
        return operation
    fold, stage = operation.fold, operation.stage
    return replace(operation, fold=lambda site, body: fold(site, replies(stage, site, body)))


def _with_replies(operation: Operation, outcome: Any, replies: EditReply | None) -> Outcome:
    if replies is None or not isinstance(operation, Exchange):
        return outcome  # type: ignore[no-any-return]
    told: ExchangeOutcome = outcome
    return replace(told, replies={site: replies(operation.stage, site, body) for site, body in told.replies.items()})
