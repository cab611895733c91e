"""Token ids to text as they come: whole characters only, and nothing that may still be part of a stop string."""
import codecs
from collections.abc import Sequence

from gramme.text.tokenizer import Tokenizer


class Detokenizer:
    """One sample's text. `stopped` is the stop string that ended it; `finish` gives what was held back.

    `shown`: special tokens that are text all the same, such as the mark before a tool call.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, stop: Sequence[str] = (),
                 include_stop: bool = False, shown: frozenset[int] = frozenset()):
        self.stopped: str | None = None
        self._tokenizer, self._stop, self._include_stop = tokenizer, tuple(stop), include_stop
        self._skipped = tokenizer.special_ids - shown if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_space = tokenizer.strips_first_space
        self._held = ""

    def feed(self, ids: Sequence[int]) -> str:
        """New text that is certain."""
        if self.stopped is not None:
            return ""
        text = self._utf8.decode(b"".join(self._tokenizer.token_bytes(t) for t in ids if t not in self._skipped))
        if self._strip_space and text:
            text, self._strip_space = text.removeprefix(" "), False
        return self._release(self._held + text)

    def finish(self) -> str:
        """The rest: bytes that never became a character are U+FFFD."""
        if self.stopped is not None:
            return ""
        text = self._release(self._held + self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped is not None else text + held

    def _release(self, text: str) -> str:
        found = [(at + len(s), at, s) for s in self._stop if (at := text.find(s)) >= 0]
        if found:  # the first to be complete, so that the answer does not depend on how the ids were cut
            _, at, self.stopped = min(found)
            self._held = ""
            return text[: at + len(self.stopped)] if self._include_stop else text[:at]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
