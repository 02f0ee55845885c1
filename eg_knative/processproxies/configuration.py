"""The options of a gateway process, as traits, and how they become `Settings`.

They live on this floor because stock Enterprise Gateway has no other place to ask: there the first process proxy builds this
object below the running application, so that `c.EgKnativeConfiguration.pool_size = 4` works in either. Our own application
inherits from it, so that the same options are also its own (`--EgKnativeApp.pool_size`). Each option has an environment
variable, as EG's have.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_runtime_dir
from traitlets import Bool, Float, Integer, Unicode, default
from traitlets.config import Configurable

from eg_knative.errors import ConfigurationError
from eg_knative.settings import LocalSettings, PoolSettings, Settings

MEBIBYTE = 1024**2


def from_environment(name: str, fallback: Any, convert: Callable[[str], Any] = str) -> Any:
    """The value of environment variable `name`, or `fallback` when it is unset or empty.

    Raises ConfigurationError that names the variable when its value cannot be converted.
    """
    text = os.environ.get(name, "")
    if not text:
        return fallback
    try:
        return convert(text)
    except ValueError as error:
        raise ConfigurationError(
            f"The environment variable {name} is not a {convert.__name__}. Correct or unset it.", field=name
        ) from error


def boolean(text: str) -> bool:
    """`true`, `1`, `yes`, `on` and their opposites, in any case. Raises ValueError."""
    word = text.strip().lower()
    if word in {"true", "1", "yes", "on"}:
        return True
    if word in {"false", "0", "no", "off"}:
        return False
    raise ValueError(text)


class EgKnativeConfiguration(Configurable):
    """Options that hold in our application and in stock Enterprise Gateway alike."""

    pool_size = Integer(
        PoolSettings.size,
        min=0,
        config=True,
        help="Kernels kept ready for each pooled kernelspec that does not say so itself; 0: none. (EG_KNATIVE_POOL_SIZE env var)",
    )

    @default("pool_size")
    def _pool_size_default(self) -> int:
        return int(from_environment("EG_KNATIVE_POOL_SIZE", PoolSettings.size, int))

    pool_total = Integer(
        PoolSettings.total,
        min=0,
        config=True,
        help="Ready and booting kernels of all pools together, at most. (EG_KNATIVE_POOL_TOTAL env var)",
    )

    @default("pool_total")
    def _pool_total_default(self) -> int:
        return int(from_environment("EG_KNATIVE_POOL_TOTAL", PoolSettings.total, int))

    pool_concurrent_starts = Integer(
        PoolSettings.concurrent_starts,
        min=1,
        config=True,
        help="Kernels that boot for the pools at once. (EG_KNATIVE_POOL_CONCURRENT_STARTS env var)",
    )

    @default("pool_concurrent_starts")
    def _pool_concurrent_starts_default(self) -> int:
        return int(from_environment("EG_KNATIVE_POOL_CONCURRENT_STARTS", PoolSettings.concurrent_starts, int))

    pool_refill_per_second = Float(
        PoolSettings.refill_per_second,
        min=0.01,
        config=True,
        help="Kernels started for the pools each second, at most. (EG_KNATIVE_POOL_REFILL_PER_SECOND env var)",
    )

    @default("pool_refill_per_second")
    def _pool_refill_per_second_default(self) -> float:
        return float(from_environment("EG_KNATIVE_POOL_REFILL_PER_SECOND", PoolSettings.refill_per_second, float))

    boot_timeout = Float(
        PoolSettings.boot_timeout_seconds,
        min=1.0,
        config=True,
        help="Seconds until a kernel that boots for the pool and is not ready is given up. (EG_KNATIVE_BOOT_TIMEOUT env var)",
    )

    @default("boot_timeout")
    def _boot_timeout_default(self) -> float:
        return float(from_environment("EG_KNATIVE_BOOT_TIMEOUT", PoolSettings.boot_timeout_seconds, float))

    launch_timeout = Float(
        Settings.launch_timeout_seconds,
        min=0.1,
        config=True,
        help="""Seconds that a launch may take when neither the request (KERNEL_LAUNCH_TIMEOUT) nor the kernelspec
        (launch_timeout_seconds) says. (EG_KERNEL_LAUNCH_TIMEOUT env var)""",
    )

    @default("launch_timeout")
    def _launch_timeout_default(self) -> float:
        return float(from_environment("EG_KERNEL_LAUNCH_TIMEOUT", Settings.launch_timeout_seconds, float))

    beat_interval = Float(
        Settings.beat_interval_seconds,
        min=0.1,
        max=60.0,
        config=True,
        help="Seconds between two beats of a kernel's launcher. (EG_KNATIVE_BEAT_INTERVAL env var)",
    )

    @default("beat_interval")
    def _beat_interval_default(self) -> float:
        return float(from_environment("EG_KNATIVE_BEAT_INTERVAL", Settings.beat_interval_seconds, float))

    run_directory = Unicode(
        config=True,
        help="""Private directory where local kernels are recorded; the next gateway with the same directory adopts them.
        Default: a directory of this gateway's port in Jupyter's runtime directory. (EG_KNATIVE_RUN_DIRECTORY env var)""",
    )

    @default("run_directory")
    def _run_directory_default(self) -> str:
        return str(from_environment("EG_KNATIVE_RUN_DIRECTORY", os.path.join(jupyter_runtime_dir(), "egknative")))

    maximum_processes = Integer(
        LocalSettings.maximum_processes,
        min=1,
        config=True,
        help="Local kernels that may exist at once, ready ones included. (EG_KNATIVE_MAXIMUM_PROCESSES env var)",
    )

    @default("maximum_processes")
    def _maximum_processes_default(self) -> int:
        return int(from_environment("EG_KNATIVE_MAXIMUM_PROCESSES", LocalSettings.maximum_processes, int))

    minimum_free_memory = Integer(
        LocalSettings.minimum_free_memory_bytes // MEBIBYTE,
        min=0,
        config=True,
        help="""Mebibytes of memory that must be free before a local kernel is started for the pool.
        (EG_KNATIVE_MINIMUM_FREE_MEMORY env var)""",
    )

    @default("minimum_free_memory")
    def _minimum_free_memory_default(self) -> int:
        fallback = LocalSettings.minimum_free_memory_bytes // MEBIBYTE
        return int(from_environment("EG_KNATIVE_MINIMUM_FREE_MEMORY", fallback, int))

    unclaimed_timeout = Float(
        LocalSettings.unclaimed_timeout_seconds,
        min=1.0,
        config=True,
        help="""Seconds after which a ready kernel that no gateway holds any more ends itself.
        (EG_KNATIVE_UNCLAIMED_TIMEOUT env var)""",
    )

    @default("unclaimed_timeout")
    def _unclaimed_timeout_default(self) -> float:
        return float(from_environment("EG_KNATIVE_UNCLAIMED_TIMEOUT", LocalSettings.unclaimed_timeout_seconds, float))

    abandoned_timeout = Float(
        LocalSettings.abandoned_timeout_seconds,
        min=1.0,
        config=True,
        help="""Seconds after which a kernel in use that no gateway holds any more ends itself.
        (EG_KNATIVE_ABANDONED_TIMEOUT env var)""",
    )

    @default("abandoned_timeout")
    def _abandoned_timeout_default(self) -> float:
        return float(from_environment("EG_KNATIVE_ABANDONED_TIMEOUT", LocalSettings.abandoned_timeout_seconds, float))

    mirror_working_dirs = Bool(
        True,
        config=True,
        help="""Start a local kernel in the directory that the request names in KERNEL_WORKING_DIR, which must exist here.
        JupyterLab sends the notebook's. False: ignore it. (EG_MIRROR_WORKING_DIRS env var)""",
    )

    @default("mirror_working_dirs")
    def _mirror_working_dirs_default(self) -> bool:
        return bool(from_environment("EG_MIRROR_WORKING_DIRS", True, boolean))

    def settings(self) -> Settings:
        """The options as the lower floors take them."""
        # EG's own option; in stock EG this object hangs below the application that has it.
        inherited = getattr(self, "inherited_envs", None) or getattr(self.parent, "inherited_envs", None) or ()
        return Settings(
            local=LocalSettings(
                run_directory=Path(self.run_directory).expanduser().absolute(),
                maximum_processes=self.maximum_processes,
                minimum_free_memory_bytes=self.minimum_free_memory * MEBIBYTE,
                unclaimed_timeout_seconds=self.unclaimed_timeout,
                abandoned_timeout_seconds=self.abandoned_timeout,
                inherited_environment=tuple(sorted(name for name in inherited if name)),
            ),
            pool=PoolSettings(
                size=self.pool_size,
                total=self.pool_total,
                refill_per_second=self.pool_refill_per_second,
                concurrent_starts=self.pool_concurrent_starts,
                boot_timeout_seconds=self.boot_timeout,
            ),
            launch_timeout_seconds=self.launch_timeout,
            beat_interval_seconds=self.beat_interval,
        )
