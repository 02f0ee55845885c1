"""Messages for sessions that are not here yet: what a kernel says, after a gateway's start, to those of the gateway before.

They exist because a kernel answers to a ZeroMQ identity, which the next gateway takes over, while the sessions that asked come
back one by one. It does not promise to keep them all (the bounds are those of any backlog), nor for long.
"""

from __future__ import annotations

import time

from eg_knative.wire.backlog import Backlog, BacklogLimits, Entry
from eg_knative.wire.jupyter_messages import Message


class Orphans:
    """Kept by the session that asked: clients put their session id into their messages' headers (JupyterLab does; it is the one
    of the URL), and a kernel repeats them as the parent header.
    """

    def __init__(self, *, limits: BacklogLimits, seconds: float) -> None:
        """`seconds`: how long from now on sessions are expected to come back."""
        self._backlog = Backlog(limits)
        self._seconds = seconds
        self._began = time.monotonic()

    @property
    def expected_back(self) -> bool:
        """May sessions of the gateway before still come?"""
        return time.monotonic() - self._began < self._seconds

    def keep(self, channel: str, message: Message) -> None:
        """Keep one for whoever asked, within the limits."""
        self._backlog.push(channel, message)

    def take(self, session_id: str) -> list[Entry]:
        """What came for a session before it was here: between a gateway's start and its clients' return."""
        if not len(self._backlog):
            return []
        mine = []
        expected_back = self.expected_back
        for entry in self._backlog.drain():
            if entry[1].parent.get("session") == session_id:
                mine.append(entry)
            elif expected_back:
                self._backlog.push(*entry)
        return mine
