"""A progress bar with the time that is left, on standard error and only where somebody can see it."""
import shutil
import sys
import time

from gramme.plan.units import minutes

SOON_S = 0.3  # what is done by then needs no bar


class Bar:
    """Call it with (done, total); a new `label` starts a new line. No wider than the terminal."""

    def __init__(self, label: str):
        self.label, self.began_s, self.skipped = label, time.monotonic(), None

    def __call__(self, done: float, total: float) -> None:
        if not sys.stderr.isatty() or time.monotonic() - self.began_s < SOON_S:
            return
        if self.skipped is None:
            self.skipped = done  # what an earlier run had finished took no time of this one
        share, spent = done / total if total else 1.0, time.monotonic() - self.began_s
        now = done - self.skipped
        left = f"{minutes(spent * (total - done) / now)} left" if now and done < total else ""
        room = min(30, shutil.get_terminal_size().columns - 40)
        filled = int(room * share)
        bar = f"[{'#' * filled}{'.' * (room - filled)}] " if room > 4 else ""
        line = f"{self.label:12} {bar}{share:4.0%} {left:16}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r{line}", end="", file=sys.stderr, flush=True)
        if done >= total:
            print(file=sys.stderr)
