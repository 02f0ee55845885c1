"""What holds for all tests.

pytest-asyncio asks for "the" event loop before it makes its own; without one set, asyncio creates a loop that nobody closes, and
the warning about it fails whichever later test happens to collect garbage (warnings are errors here). So there is one, and it is
closed.
"""

from __future__ import annotations

import asyncio

import pytest


def pytest_configure(config: pytest.Config) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    def close() -> None:
        asyncio.set_event_loop(None)
        loop.close()

    config.add_cleanup(close)
