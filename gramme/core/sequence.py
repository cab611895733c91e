"""The one mutable record of a sample: its tokens, and how far keys and values are valid. Knows no pool and no clock."""
from array import array
from dataclasses import dataclass, field

from gramme.core.pages import Prefix


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """The first fields are the caller's, the others the scheduler's.

    `tokens` holds prompt and answer, in 4 bytes each: a list of Python's integers takes nine times as much. KV is
    committed for tokens[:cached] and scheduled for tokens[:planned]; between two commits `pending` tokens (0 or 1) are
    being sampled that the host does not know yet.
    """

    id: str
    tokens: "array[int]"  # made of any sequence
    max_tokens: int
    index: int = 0  # which sample of the request
    stop_ids: frozenset[int] = frozenset()
    priority: int = 0  # lower runs first
    start_by_s: float | None = None  # the latest time for its first step
    deadline_s: float | None = None
    root: bytes = b""  # namespace of prefixes: model, form of KV, salt
    runs_ahead: bool = True  # False: its next step needs the newest token on the host
    caches: bool = True  # False: logits or hidden states of the prompt are wanted, so it must be computed
    pooling: bool = False  # samples nothing: ends when its prompt has run
    held: bool = False  # True: it waits for something outside, such as its grammar, and lets others pass

    prompt_len: int = 0
    due: bool = False  # its turn has come, even if it was held then
    order: tuple[int, int] = (0, 0)  # priority, arrival
    cached: int = 0
    planned: int = 0
    pending: int = 0
    in_flight: int = 0  # uncommitted batches that hold a row of it
    pages: list[int] = field(default_factory=list)
    prefixes: list[Prefix] = field(default_factory=list)  # of its full pages, hashed once
    had: int = 0  # tokens whose KV it held when it was preempted: what it runs below is run again
    hit_tokens: int = 0  # prompt tokens that were found at its first admission
    scheduled_s: float | None = None
    finish_reason: str | None = None
    leaving: bool = False  # preempted or finished while in flight: its pages come back at a commit

    def __post_init__(self) -> None:
        self.tokens, self.prompt_len = array("i", self.tokens), len(self.tokens)

    def is_late(self, now_s: float) -> bool:
        late = self.deadline_s is not None and self.deadline_s <= now_s
        return late or (self.scheduled_s is None and self.start_by_s is not None and self.start_by_s <= now_s)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def known(self) -> int:
        """Tokens that exist once the batch in flight has been committed."""
        return len(self.tokens) + self.pending

    @property
    def last_kv(self) -> int:
        """Positions whose KV it can ever need: the last sampled token's is not computed."""
        return self.prompt_len + max(self.max_tokens - 1, 0)
