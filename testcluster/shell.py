"""Running other programs, so that none of them outlives us and each failure is one readable line.

`guarded` puts a long build into namespaces that die with this process: a killed `up` leaves neither a compiler nor a
half-mounted chroot behind. It does not sandbox anything.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from testcluster.errors import CommandError

_TAIL = 1500


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | bytes | None = None,
    log: Path | None = None,
    timeout: float | None = None,
    name: str = "",
) -> str:
    """Run a program to its end and return its output; raise CommandError with the end of its words if it fails.

    With `log`, everything it prints goes there instead and the return value is empty.
    """
    data = stdin.encode() if isinstance(stdin, str) else stdin
    words = [str(word) for word in argv]
    name = name or " ".join([os.path.basename(words[0]), *words[1:3]])
    try:
        if log is None:
            done = subprocess.run(words, env=env, cwd=cwd, input=data, capture_output=True, timeout=timeout)
            said = done.stderr or done.stdout
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as sink:
                done = subprocess.run(words, env=env, cwd=cwd, input=data, stdout=sink, stderr=subprocess.STDOUT, timeout=timeout)
            said = log.read_bytes()
    except FileNotFoundError as error:
        raise CommandError(f"{words[0]} is not installed (scripts/cluster up installs what it can as root)") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{name} did not finish within {timeout:.0f} s") from error
    if done.returncode != 0:
        where = f" (all of it in {log})" if log else ""
        raise CommandError(f"{name} failed with {done.returncode}{where}: {tail(said)}")
    return (done.stdout or b"").decode(errors="replace")


def succeeds(argv: Sequence[str | Path], *, timeout: float | None = None) -> bool:
    """Whether a program exits with 0; what it prints is thrown away."""
    try:
        run(argv, timeout=timeout)
    except CommandError:
        return False
    return True


def guarded(argv: Sequence[str | Path]) -> list[str]:
    """The command in mount and process namespaces of its own, at low priority, killed with all it started if we die."""
    words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*words, *polite([str(word) for word in argv])]


def polite(argv: Sequence[str]) -> list[str]:
    """The command at a lower priority, as whoever waits for a build has other work to do; not so low that it starves."""
    prefix = ["nice", "-n", os.environ.get("EG_KNATIVE_NICE", "5")]
    if shutil.which("ionice"):
        prefix += ["ionice", "-c2", "-n7"]
    return [*prefix, *argv]


def clean_environment(**extra: str) -> dict[str, str]:
    """A small environment for daemons: a proxy or a KUBECONFIG of the user's must not reach them."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": os.environ.get("HOME", "/root"), "LANG": "C.UTF-8", **extra}


def tail(said: bytes) -> str:
    """The end of a program's output on one line."""
    text = said.decode(errors="replace").strip()
    return " | ".join(line.strip() for line in text[-_TAIL:].splitlines()[-6:] if line.strip()) or "it said nothing"
