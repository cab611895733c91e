"""Whether a request may queue: the one place where a 429 is decided. Knows no HTTP, no clock and no engine."""
import math

from gramme.serve.errors import HttpError
from gramme.serve.outlook import Expected, Load


class Place:
    """Room for a load, given back when the block that holds it ends."""

    def __init__(self, admission: "Admission", load: Load):
        self._admission, self._load = admission, load

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self._admission.loads.remove(self._load)
        self._admission.outstanding -= self._load.sequences


class Admission:
    """At most `max_queue` sequences may wait beyond the `max_rows` that run; with `slo_ttft_s` none is let in that
    would have its first token later than that."""

    def __init__(self, max_queue: int, slo_ttft_s: float | None = None):
        self.max_queue, self.slo_ttft_s = max_queue, slo_ttft_s
        self.loads: set[Load] = set()  # admitted and not yet ended
        self.outstanding = 0  # their sequences

    def admit(self, load: Load, max_rows: int, expected: Expected) -> Place:
        """Take room, or raise 429."""
        self.check(load.sequences, max_rows, expected)
        self.loads.add(load)
        self.outstanding += load.sequences
        return Place(self, load)

    def check(self, sequences: int, max_rows: int, expected: Expected) -> None:
        """Raise 429, with what is expected as Retry-After, where there is no room or it would come too late.

        When nobody else is there a request may be larger than the whole queue, and may come to try a stale prediction:
        who refuses everything learns nothing.
        """
        there = self.outstanding
        if there and there + sequences > max_rows + self.max_queue:
            wait_s = expected.sequence_s * (there - max_rows + 1) / max_rows
            raise _full(f"{there} sequences run or wait, the most is {max_rows + self.max_queue}", "queue_full", wait_s)
        if self.slo_ttft_s is not None and expected.ttft_s > self.slo_ttft_s and (there or not expected.stale):
            raise _full(f"the first token would come {expected.ttft_s:.2f} s after the request, the limit is "
                        f"{self.slo_ttft_s:g} s", "slo_ttft", expected.ttft_s)


def _full(message: str, code: str, wait_s: float) -> HttpError:
    return HttpError(429, message, "rate_limit_error", code=code, retry_after_s=max(1, math.ceil(wait_s)))
