"""The base environment of a local kernel: what it may inherit from the gateway, and what its kernelspec adds.

It exists because a kernel is a user's program: the gateway's tokens, options and secrets must not be in it, and
what is in it must not depend on how the gateway happened to be started. Pure; nothing here reads the process's
environment. What a request adds (`KERNEL_*`) comes later, with the promotion.

Inherited: where the user's things are (HOME, XDG base directories but not XDG_RUNTIME_DIR, which belongs to a
login), who and where the user is (USER, LANG, LC_*, TZ), the search path, and what the machine needs for native
libraries and devices to be found at all (LD_LIBRARY_PATH, CUDA_VISIBLE_DEVICES) or for certificates to be verified.
Not inherited: variables of the gateway's own Python (PYTHONPATH, VIRTUAL_ENV, CONDA_*), of Jupyter, and proxies,
whose URLs may hold passwords; an operator adds what a site needs.
"""

from __future__ import annotations

import os.path
import re
import string
from collections.abc import Iterable, Mapping

INHERITED = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "NVIDIA_VISIBLE_DEVICES",
        "PATH",
        "REQUESTS_CA_BUNDLE",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
    }
)
_INHERITED_PREFIX = "LC_"
_FORBIDDEN = re.compile(
    r"EG_.*|.*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY).*", re.IGNORECASE | re.DOTALL
)


def is_forbidden(name: str) -> bool:
    """Whether a variable of this name is never inherited, whoever asks for it."""
    return _FORBIDDEN.fullmatch(name) is not None


def base_environment(*, gateway: Mapping[str, str], extra: Iterable[str] = ()) -> dict[str, str]:
    """What may be inherited of `gateway`, the gateway's own environment. `extra`: names that an operator adds."""
    wanted = INHERITED | set(extra)
    return {
        name: value
        for name, value in gateway.items()
        if (name in wanted or name.startswith(_INHERITED_PREFIX)) and not is_forbidden(name)
    }


def kernel_environment(
    *, gateway: Mapping[str, str], extra: Iterable[str] = (), specification: Mapping[str, str], executable: str
) -> dict[str, str]:
    """A kernel's whole environment before its promotion.

    `specification`: the kernelspec's `env`; `${NAME}` in its values is replaced from the base environment alone, so
    that a kernelspec cannot fetch what is not inherited; unknown names stay as they are, as in jupyter_client.
    `executable`: the kernel's `argv[0]`; its directory comes first on PATH when it is an absolute path, so that
    `!pip` in a cell is the kernel's own.
    """
    environment = base_environment(gateway=gateway, extra=extra)
    directories = environment.get("PATH", os.path.defpath).split(os.pathsep)
    if os.path.isabs(executable):
        own = os.path.dirname(executable)
        directories = [own, *(directory for directory in directories if directory != own)]
    environment["PATH"] = os.pathsep.join(directories)
    added = {name: string.Template(value).safe_substitute(environment) for name, value in specification.items()}
    return environment | added
