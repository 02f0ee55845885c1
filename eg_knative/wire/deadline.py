"""One way to put a time limit on an awaitable.

`asyncio.timeout` is new in Python 3.11, and `asyncio.wait_for` of 3.10 and 3.11 swallows a cancellation that
arrives in the same turn of the loop as the result. A start that is cancelled must never go on, so neither will do.
The awaitable must clean up behind itself when it is cancelled: a result that arrives together with the caller's
cancellation is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, or TimeoutError after `seconds`. Cancelled or late work is ended before this returns."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        late = not task.done()
        if late:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody may be left to read it; asyncio would report that as a leak
    if late and (task.cancelled() or task.exception() is not None):
        raise asyncio.TimeoutError
    return task.result()
