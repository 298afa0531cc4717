"""The post office of the app that this code runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pppml_flower.post import Post

_post: ContextVar[Post | None] = ContextVar("pppml_flower_post", default=None)


def post_at_hand() -> Post | None:
    """What :func:`using` gave; None outside of an app."""
    return _post.get()


@contextmanager
def using(post: Post) -> Iterator[None]:
    """Engines that connect meanwhile use this one."""
    token = _post.set(post)
    try:
        yield
    finally:
        _post.reset(token)
