"""An answer's text into content, reasoning and tool calls, as it comes. Knows no tokens and no HTTP.

However the text is cut, the pieces add up to the same.
"""
from collections.abc import Collection
from dataclasses import dataclass, field

from gramme.text.calls import CallPiece, CallReader, Form, overlap

MAX_BLANKS = 64  # before the first mark
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


def thinking(template: str) -> tuple[str, str] | None:
    """The marks around the reasoning of models whose template knows them."""
    return next((marks for marks in THINKING if marks[1] in template), None)


@dataclass
class Piece:
    """What some more text brought."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)


class AnswerParser:
    """Reasoning first, if it opens the answer or the prompt has opened it; then content and calls.

    `certain`: a grammar guarantees the calls, in exactly the form's layout, so that arguments are given as they come.
    Otherwise a call is given when it is whole: only then is it known to be one.
    """

    def __init__(self, form: Form | None, marks: tuple[str, str] | None, *, names: Collection[str] = (),
                 opened: bool = False, certain: bool = False, most: int | None = None):
        self._thoughts = Thoughts(*marks, opened) if marks else None
        self._calls = CallReader(form, names, certain, most) if form else None
        self._space = Space()

    def feed(self, text: str) -> Piece:
        piece = Piece()
        if self._thoughts is not None:
            piece.reasoning, text = self._thoughts.feed(text)
            if self._thoughts.ended_now:
                self._space.drop()
        self._take(piece, text)
        return piece

    def finish(self) -> Piece:
        """What was held back."""
        piece = Piece()
        if self._thoughts is not None:
            piece.reasoning, text = self._thoughts.finish()
            self._take(piece, text)
        if self._calls is not None:
            self._give(piece, self._calls.finish())
        piece.content += self._space.flush()
        return piece

    def _take(self, piece: Piece, text: str) -> None:
        if text and self._calls is not None:
            self._give(piece, self._calls.feed(text))
        elif text:
            piece.content += self._space.push(text)

    def _give(self, piece: Piece, parts: list[str | CallPiece]) -> None:
        for part in parts:
            if isinstance(part, str):
                piece.content += self._space.push(part)
            else:
                self._space.drop()
                piece.calls.append(part)


class Space:
    """Holds white space back until what follows is known: beside a call or a thought it is layout, not content."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._edge = False  # something was dropped here: white space that follows goes too

    def push(self, text: str) -> str:
        if self._edge:
            text = text.lstrip()
            self._edge = not text
        solid = text.rstrip()
        if not solid:
            self._held.append(text)
            return ""
        out = "".join([*self._held, solid])
        self._held = [text[len(solid) :]]
        return out

    def drop(self) -> None:
        self._held, self._edge = [], True

    def flush(self) -> str:
        held, self._held = "".join(self._held), []
        return held


class Thoughts:
    """Splits what stands between two marks at the beginning from what follows."""

    def __init__(self, opening: str, closing: str, opened: bool):
        self._opening, self._closing = opening, closing
        self._state = "inside" if opened else "before"
        self._held = ""
        self._space = Space()
        self._space.drop()
        self.ended_now = False

    def feed(self, text: str) -> tuple[str, str]:
        """(reasoning, the rest)"""
        self.ended_now = False
        if self._state == "after":
            return "", text
        text, self._held = self._held + text, ""
        if self._state == "before":
            start = text.lstrip()
            few = len(text) - len(start) <= MAX_BLANKS
            if few and len(start) < len(self._opening) and self._opening.startswith(start):
                self._held = text
                return "", ""
            if not (few and start.startswith(self._opening)):
                self._state = "after"
                return "", text
            self._state, text = "inside", start[len(self._opening) :]
        return self._inside(text)

    def _inside(self, text: str) -> tuple[str, str]:
        head, found, rest = text.partition(self._closing)
        if found:
            self._state, self.ended_now = "after", True
            return self._space.push(head), rest
        keep = overlap(text, self._closing)
        self._held = text[len(text) - keep :]
        return self._space.push(text[: len(text) - keep]), ""

    def finish(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        return (self._space.push(held), "") if self._state == "inside" else ("", held)
