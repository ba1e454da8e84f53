"""How much memory there is, and the refusal of work that needs more, before any of it is allocated.

Linux gives out more memory than it has and then kills a process that uses it, so an error cannot be waited for.
"""

import math
import os
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import ResourceError

CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""The limit of a container and its use of it, in bytes, in versions 2 and 1 of Linux's control groups."""


def free_memory() -> float:
    """Bytes of main memory that this process can still take: at least so many, infinity if unknown."""
    free = [math.inf]
    if sys.platform == "win32":  # pragma: no cover (Windows)
        return math.inf
    import resource

    with suppress(OSError, ValueError):  # macOS reports no more than the size of the memory
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        free.append(math.inf if limit == resource.RLIM_INFINITY else limit - used)
    for limit, used in CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # "max" is no limit
            cache = _reclaimable(Path(used).with_name("memory.stat"))
            free.append(
                int(Path(limit).read_text(encoding="utf-8")) - int(Path(used).read_text(encoding="utf-8")) + cache
            )
    return max(min(free), 0)


def _reclaimable(stat: Path) -> int:
    """Bytes of a control group that hold copies of files, which Linux gives up where the memory is needed."""
    values = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines())
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def require_memory(needed: int, what: str, fix: str) -> None:
    """Raise ResourceError if there is less memory than `needed` bytes.

    what   takes the memory, in the plural
    fix    what to do, as an imperative
    """
    if needed > (free := free_memory()):
        raise ResourceError(f"{what} need {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free: {fix}")
