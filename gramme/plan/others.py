"""How much of this machine others take: other processes, and the host below that gives its time to other guests.

What was measured beside them says something about them, so nothing is learnt from it. Reads /proc; elsewhere than on
Linux nobody else is seen.
"""
import os
import time
from pathlib import Path

ROOT = Path("/")
MOST_CORES = 0.2  # that others may take beyond those that this process leaves free
LEAST_S = 0.2  # the system counts in hundredths of a second: shorter times say nothing
IDLE = (3, 4)  # columns of /proc/stat: idle, waiting for a disk
COLUMNS = 8  # the last one is steal; what follows is counted in the first two already


class Others:
    """Watches from its making on."""

    def __init__(self, root: Path = ROOT):
        self._root, self._began = root, _counted(root)

    def cores(self) -> float:
        """That others took, in the mean."""
        wall, busy, own = (b - a for a, b in zip(self._began, _counted(self._root)))
        return max(0.0, busy - own) / wall if wall >= LEAST_S else 0.0

    def disturb(self, threads: int) -> bool:
        """Whether so many threads of ours had to share their cores."""
        spare = max(0, (os.cpu_count() or 1) - threads)
        return self.cores() > spare + MOST_CORES


def _counted(root: Path) -> tuple[float, float, float]:
    """Seconds: of the clock, of all cores at work, of this process."""
    try:
        words = (root / "proc/stat").read_text().partition("\n")[0].split()[1 : 1 + COLUMNS]
        ticks = [int(word) for word in words]
    except (OSError, ValueError):
        ticks = []
    busy = sum(n for i, n in enumerate(ticks) if i not in IDLE) / os.sysconf("SC_CLK_TCK") if ticks else 0.0
    return time.monotonic(), busy, time.process_time()
