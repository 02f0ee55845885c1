"""What is asked before anything is made for a request: is there room by the operator's limits, and is there the directory?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection

from eg_knative.errors import BadRequestError, NotAllowedError

DIRECTORY_TIMEOUT = 5.0
"""Seconds to find out whether a working directory exists; a network file system may hang."""


def require_room(username: str, *, owners: Collection[str], maximum: int | None, per_user: int | None) -> None:
    """EG's max_kernels and max_kernels_per_user (None or negative: no limit). Pure.

    `owners`: the user of each kernel that runs (adopted ones too) or is being started. Raises NotAllowedError.
    """
    if maximum is not None and len(owners) >= maximum:
        raise NotAllowedError(
            f"This gateway runs at most {maximum} kernels, and {len(owners)} run or are starting. Shut one down first.",
            reason="kernel_limit",
        )
    if per_user is None or per_user < 0:
        return
    own = sum(owner == username for owner in owners)
    if own >= per_user:
        raise NotAllowedError(
            f"User '{username}' may run at most {per_user} kernels, and {own} run or are starting. Shut one down first.",
            reason="kernel_limit_per_user",
        )


async def require_directory(directory: str) -> str:
    """The directory, when it is absolute, exists here and can be entered. Looks in a thread. Raises BadRequestError."""
    try:
        usable = await asyncio.wait_for(asyncio.to_thread(_can_enter, directory), DIRECTORY_TIMEOUT)
    except asyncio.TimeoutError:
        usable = False
    if not usable:
        raise BadRequestError(
            "KERNEL_WORKING_DIR is not a directory that can be entered on the gateway's machine. Create it, send "
            "another, or set EG_MIRROR_WORKING_DIRS=False at the gateway to ignore it.",
            field="KERNEL_WORKING_DIR",
            reason="working_directory_missing",
        )
    return directory


def _can_enter(directory: str) -> bool:
    return os.path.isabs(directory) and os.path.isdir(directory) and os.access(directory, os.X_OK)
