"""Which kernelspecs there are, kept in memory and looked after in the background.

It exists because EG walks the disk on its event loop for every GET /api/kernelspecs and for every kernel. Here a thread looks
at names, sizes and times of the files once a second, reads what changed, and swaps one frozen snapshot. A broken
`kernel.json` hides itself alone, and is told once. Changes appear within about a second; a request for an unknown name looks
at the disk once more before it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable, Mapping

from eg_knative.errors import UnknownKernelspecError
from eg_knative.gateway.kernelspec_files import KernelspecEntry, Signature, load_entry, signature_of
from eg_knative.specification import KernelSpecification

INTERVAL_SECONDS = 1.0
"""Between two looks at the disk."""

log = logging.getLogger(__name__)


Snapshot = Mapping[str, KernelspecEntry]


class KernelspecIndex:
    """The snapshot, and the task that renews it.

    `find` lists the kernelspec directories, name to path, and is called in a thread. `changed` is called on the event loop
    with the new snapshot, at the first look and after each change.
    """

    def __init__(self, *, find: Callable[[], Mapping[str, str]], python: str = sys.executable) -> None:
        self._find = find
        self._python = python
        self._signatures: dict[str, Signature] = {}
        self._told: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._looked = float("-inf")
        self.changed: list[Callable[[Snapshot], None]] = []
        self.snapshot: Snapshot = {}

    async def open(self) -> None:
        """Look once, and from now on every second."""
        await self.refresh()
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="kernelspecs")

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    @property
    def usable(self) -> Snapshot:
        """The kernelspecs without error."""
        return {name: entry for name, entry in self.snapshot.items() if entry.error is None}

    @property
    def specifications(self) -> dict[str, KernelSpecification]:
        """The usable ones that are ours."""
        return {name: entry.specification for name, entry in self.usable.items() if entry.specification is not None}

    async def lookup(self, name: str) -> KernelspecEntry:
        """The kernelspec to launch. Raises UnknownKernelspecError, or its ConfigurationError when it is broken."""
        entry = self.snapshot.get(name) or self.snapshot.get(name.lower())
        if entry is None or entry.error is not None:
            await self.refresh()  # it may have been made or mended within the last second
            entry = self.snapshot.get(name.lower())
        if entry is None:
            known = ", ".join(sorted(self.usable)) or "none"
            raise UnknownKernelspecError(f"There is no kernelspec '{name[:100]}' here. Known: {known}.", field="name")
        if entry.error is not None:
            raise entry.error
        return entry

    async def refresh(self, *, older_than: float = 0.0) -> None:
        """Look at the disk now, unless that was done less than `older_than` seconds ago. Concurrent callers share one look."""
        asked = asyncio.get_running_loop().time()
        async with self._lock:
            if self._looked > asked or self._looked + older_than > asked:
                return
            looked = asyncio.get_running_loop().time()
            snapshot, signatures = await asyncio.to_thread(self._scan, self.snapshot, self._signatures)
            self._looked = looked
            if signatures == self._signatures and self.snapshot:
                return
            self.snapshot, self._signatures = snapshot, signatures
        self._tell_broken()
        for listener in self.changed:
            listener(snapshot)

    def _scan(
        self, known: Snapshot, signatures: Mapping[str, Signature]
    ) -> tuple[dict[str, KernelspecEntry], dict[str, Signature]]:
        entries: dict[str, KernelspecEntry] = {}
        seen: dict[str, Signature] = {}
        for name, directory in sorted(self._find().items()):
            signature = signature_of(directory)
            if not signature:
                continue
            seen[name] = signature
            if signatures.get(name) == signature and name in known:
                entries[name] = known[name]
            else:
                entries[name] = load_entry(name=name, resource_dir=directory, python=self._python)
        return entries, seen

    def _tell_broken(self) -> None:
        broken = {name: entry.error.message for name, entry in self.snapshot.items() if entry.error is not None}
        for name, message in broken.items():
            if self._told.get(name) != message:
                log.warning("%s It is hidden until it is mended.", message)
        self._told = broken

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            try:
                await self.refresh()
            except OSError as error:
                log.warning("The kernelspecs cannot be looked at: %s. The last known ones are served.", error)
            except Exception:
                log.exception("Looking at the kernelspecs failed; the last known ones are served")
