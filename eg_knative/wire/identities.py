"""The ZeroMQ identities under which a gateway speaks to a kernel.

They exist because a kernel addresses its replies to an identity, and gateways come and go: whoever speaks to the kernel next has
to be able to call itself the same. Pure. It does not promise that an identity is in use once only; that is its user's care.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eg_knative.wire.control import ConnectionInfo


def primary_identity(connection: ConnectionInfo) -> bytes:
    """The ZeroMQ identity of a kernel's first client, the same for every gateway process that ever speaks to the kernel.

    A kernel addresses its reply to an identity: a cell that ran while the gateway was replaced is answered to the next one.
    Two sets that are open at once must not share it: the kernel's socket would hand it from one to the other and back.
    """
    place = f"{connection.transport}:{connection.ip}:{connection.shell_port}:{connection.iopub_port}"
    return b"egk-first-" + hashlib.sha256(place.encode()).hexdigest()[:24].encode()


def session_identity(session_id: str) -> bytes:
    """The ZeroMQ identity of any further client session."""
    return b"egk-" + hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()[:24].encode()
