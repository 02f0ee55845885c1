"""A kernel's process before it is one: `python -I -S exec.py LAUNCHER_PID PROGRAM ARGUMENT…`.

Sets the parent-death signal and becomes the program. A process of its own because the launcher may have threads (libzmq's), and
running Python between fork and exec is not safe then. What it cannot start ends with 127 and a sentence.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns."""
    launcher_pid, argv = int(sys.argv[1]), sys.argv[2:]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != launcher_pid:
            os._exit(1)
    for signum in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(signum, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - a list, never a shell
    except OSError as error:
        sys.stderr.write(f"{argv[0]} cannot be started: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


if __name__ == "__main__":
    main()
