"""The exceptions of the test cluster tool, one tree.

Every message is one line for a person and says what to do about it; the command line prints it and nothing else.
"""


class ClusterError(Exception):
    """Something the person at the terminal has to know; str() is the whole message."""


class UnsupportedMachineError(ClusterError):
    """This machine lacks something that `up` cannot install by itself."""


class BusyError(ClusterError):
    """Another `up`, `down` or `load-image` holds the lock, or another cluster holds the addresses."""


class CommandError(ClusterError):
    """A program we ran failed."""


class NotRunningError(ClusterError):
    """There is no cluster, or the part that was asked for does not run."""


class NotReadyError(ClusterError):
    """Something started but did not become ready in time."""
