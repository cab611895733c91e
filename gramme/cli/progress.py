"""A progress bar with the time that is left, on standard error and only where somebody can see it."""
import sys
import time


class Bar:
    """Call it with (done, total); a new `label` starts a new line."""

    def __init__(self, label: str):
        self.label, self.began_s, self.skipped = label, time.monotonic(), None

    def __call__(self, done: float, total: float) -> None:
        if not sys.stderr.isatty():
            return
        if self.skipped is None:
            self.skipped = done  # what an earlier run had finished took no time of this one
        share, spent = done / total if total else 1.0, time.monotonic() - self.began_s
        now = done - self.skipped
        left = f"{minutes(spent * (total - done) / now)} left" if now and done < total else ""
        filled = int(30 * share)
        line = f"\r{self.label:12} [{'#' * filled}{'.' * (30 - filled)}] {share:4.0%} {left:16}"
        print(line, end="", file=sys.stderr, flush=True)
        if done >= total:
            print(file=sys.stderr)


def minutes(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
