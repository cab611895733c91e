"""Whether a request may queue: the one place where a 429 is decided. Counts sequences; knows no HTTP and no clock."""
import math

from gramme.serve.errors import HttpError


class Place:
    """Room for some sequences, given back when the block that holds it ends."""

    def __init__(self, admission: "Admission", sequences: int):
        self._admission, self._sequences = admission, sequences

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self._admission.outstanding -= self._sequences


class Admission:
    """At most `max_queue` sequences may wait beyond the `max_rows` that run."""

    def __init__(self, max_queue: int):
        self.max_queue = max_queue
        self.outstanding = 0  # sequences admitted and not yet ended

    def admit(self, sequences: int, max_rows: int, sequence_s: float) -> Place:
        """Take room, or raise 429."""
        self.check(sequences, max_rows, sequence_s)
        self.outstanding += sequences
        return Place(self, sequences)

    def check(self, sequences: int, max_rows: int, sequence_s: float) -> None:
        """Raise 429 where there is no room. `sequence_s`: what a sequence took lately, for Retry-After.

        A request that is larger than the whole queue may come when nobody else is there.
        """
        if self.outstanding and self.outstanding + sequences > max_rows + self.max_queue:
            wait_s = sequence_s * (self.outstanding - max_rows + 1) / max_rows
            raise HttpError(429, f"{self.outstanding} sequences run or wait, the most is {max_rows + self.max_queue}",
                            "rate_limit_error", code="queue_full", retry_after_s=max(1, math.ceil(wait_s)))
