"""Does what is installed fit Enterprise Gateway 3.3? Asked before any of it is imported.

Beside jupyter_client 7 or 8, EG starts and bypasses its process proxies without a word, so this is checked and refused. It
reads the metadata of installed distributions, nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import metadata

Version = tuple[int, ...]

REQUIREMENTS: Mapping[str, tuple[Version, Version, str]] = {
    "jupyter_enterprise_gateway": ((3, 3), (3, 4), "jupyter_enterprise_gateway==3.3.0"),
    "jupyter_client": ((6, 1, 12), (6, 1, 13), "jupyter_client==6.1.12"),
    "jupyter_server": ((1, 24), (2,), "jupyter_server>=1.24,<2"),
    "pyzmq": ((24,), (25,), "pyzmq>=24,<25"),
}
"""Distribution: first version that fits, first that does not any more, and how pip is told."""

PYTHON = ((3, 10), (3, 12))


def parse(text: str) -> Version:
    """The leading numbers of a version: `6.1.12.post1` is (6, 1, 12)."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def complaint(
    *, installed: Callable[[str], str | None] = installed_version, python: Version = tuple(sys.version_info[:2])
) -> str | None:
    """What is wrong and how to mend it, in one message; None when everything fits."""
    if not PYTHON[0] <= python < PYTHON[1]:
        return (
            f"jupyter egknative needs Python 3.10 or 3.11, and this is {python[0]}.{python[1]}. "
            "Enterprise Gateway 3.3 runs on no other."
        )
    wrong = []
    for name, (first, last, _) in REQUIREMENTS.items():
        found = installed(name)
        if found is None:
            wrong.append(f"{name} is not installed")
        elif not first <= parse(found) < last:
            wrong.append(f"{name} {found} is installed")
    if not wrong:
        return None
    command = " ".join(f"'{wanted}'" for _, _, wanted in REQUIREMENTS.values())
    return (
        f"jupyter egknative cannot start beside what is installed: {', '.join(wrong)}. "
        "Enterprise Gateway 3.3 needs other versions, and would start kernels past its process proxies. Mend it with\n"
        f"    pip install {command}"
    )
