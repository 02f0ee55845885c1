"""`python -m eg_launcher --config PATH`: one launcher's process, PID 1 of a container or a plain process.

Also the way in for a launcher that a nursery forked. Owns signals, logging and the exit code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import socket
import sys
from typing import Any

from eg_launcher import system
from eg_launcher.app import Server
from eg_launcher.config import Config, parse_config
from eg_launcher.errors import ConfigurationError
from eg_launcher.launcher import EXIT_CONFIGURATION, EXIT_INTERNAL, Launcher

_LARGEST_CONFIGURATION = 8 * 1024 * 1024
log = logging.getLogger("eg_launcher")


def main() -> None:
    """Read the configuration and run; exits with the protocol's codes."""
    parser = argparse.ArgumentParser(prog="python -m eg_launcher", description="The parent process of one Jupyter kernel.")
    parser.add_argument("--config", required=True, help="configuration file; - for standard input")
    path = parser.parse_args().config
    try:
        document = _read(path)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"The configuration cannot be read: {error}\n")
        sys.exit(EXIT_CONFIGURATION)
    system.become_subreaper()
    sys.exit(_run(document, zygote_socket=None))


def run_forked(*, config: dict[str, Any], zygote_socket: socket.socket) -> None:
    """Run in a process that a nursery forked; exits with the protocol's codes."""
    sys.exit(_run(config, zygote_socket=zygote_socket))


def _read(path: str) -> Any:
    if path == "-":
        return json.loads(sys.stdin.read(_LARGEST_CONFIGURATION))
    with open(path, encoding="utf-8") as file:
        return json.loads(file.read(_LARGEST_CONFIGURATION))


def _run(document: Any, *, zygote_socket: socket.socket | None) -> int:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s eg-launcher %(levelname)s %(message)s", force=True
    )
    for name in ("asyncio", "tornado"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        config = parse_config(document)
        system.set_short_name("eg-launcher")
        system.set_title(["eg-launcher", config.name])
        return asyncio.run(_serve(config, zygote_socket))
    except ConfigurationError as error:
        log.error("%s", error)
        return EXIT_CONFIGURATION
    except Exception:  # the last one who can say what happened
        log.exception("The launcher failed")
        return EXIT_INTERNAL


async def _serve(config: Config, zygote_socket: socket.socket | None) -> int:
    launcher = Launcher(config, zygote_socket=zygote_socket)
    server = Server(launcher)
    server.start()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: launcher.shutdown(grace_seconds=5.0))
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    try:
        return await launcher.run()
    finally:
        await server.stop()


if __name__ == "__main__":
    main()
