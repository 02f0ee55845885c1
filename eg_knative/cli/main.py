"""`jupyter egknative`: the command. It checks what is installed before it imports what would break."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eg_knative.cli.versions import complaint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gateway; returns the exit code: 0 after a signal, 1 when something is wrong with options or
    installation, 130 when Ctrl-C came before it was up."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    problem = complaint()
    if problem is not None:
        print(problem, file=sys.stderr)  # noqa: T201  # there is no application, and no log, yet
        return 1
    from eg_knative.errors import ConfigurationError

    try:
        from eg_knative.gateway.app import EgKnativeApp  # a second of imports: Ctrl-C may well come in it

        EgKnativeApp.launch_instance(argv=arguments)
    except ConfigurationError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:  # before the gateway heeds signals: nothing was started
        return 130
    return 0
