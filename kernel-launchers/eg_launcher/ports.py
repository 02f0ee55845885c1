"""Ports that stay this launcher's for its life: bound, never listening.

Linux lets a second socket bind and listen on a port that another one holds when both set SO_REUSEADDR and none listens; libzmq
sets it. Nobody who asks the system for a free port gets one that is held so. It gives nothing against a process of the same
machine that binds the very port with SO_REUSEADDR on purpose.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from eg_launcher.errors import ConfigurationError


class PortReservation:
    """Five ports: shell, iopub, stdin, control, heartbeat. `ports` are the numbers; `release` gives the sockets up."""

    def __init__(self, *, ip: str, wanted: Sequence[int]) -> None:
        """Reserve them; 0 picks one. Raises ConfigurationError when an address cannot be bound."""
        self._sockets: list[socket.socket] = []
        self._ip = ip
        self._family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        try:
            for index, port in enumerate(wanted):
                sock = socket.socket(self._family, socket.SOCK_STREAM)
                self._sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind((ip, port))
                except (OSError, OverflowError) as error:
                    message = f"{ip}:{port} cannot be bound: {error}"
                    raise ConfigurationError(message, field=f"ports[{index}]") from error
        except ConfigurationError:
            self.release()
            raise
        self.ports: tuple[int, ...] = tuple(sock.getsockname()[1] for sock in self._sockets)

    def unheard(self) -> bool:
        """Whether nobody listens on any of them, so that the next kernel can."""
        for port in self.ports:
            with socket.socket(self._family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self._ip, port))
                    probe.listen(1)
                except OSError:
                    return False
        return True

    def release(self) -> None:
        """Let go of them; the numbers stay. Idempotent."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
