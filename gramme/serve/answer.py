"""One sample's text as OpenAI's message: content, reasoning and tool calls, whole or in deltas. Knows no engine."""
import secrets
import string
from typing import Any

from gramme.text.parsing import AnswerParser, Piece

ID_ALPHABET = string.ascii_letters + string.digits


class Answer:
    """Each piece of text is fed once: either by `delta`, the last one with `last`, or all of it by `message`."""

    def __init__(self, parser: AnswerParser | None, id_chars: int):
        self._parser, self._id_chars = parser, id_chars
        self._called = False

    def reason(self, reason: str | None) -> str | None:
        """An answer that ends with calls ends because of them."""
        return "tool_calls" if self._called and reason == "stop" else reason

    def delta(self, text: str, last: bool) -> dict[str, Any]:
        if self._parser is None:
            return {"content": text} if text else {}
        out: dict[str, Any] = {}
        for piece in [self._parser.feed(text), *([self._parser.finish()] if last else [])]:
            if piece.content:
                out["content"] = out.get("content", "") + piece.content
            if piece.reasoning:
                out["reasoning"] = out["reasoning_content"] = out.get("reasoning", "") + piece.reasoning
            if piece.calls:
                out["tool_calls"] = [*out.get("tool_calls", []), *self._calls(piece)]
        return out

    def message(self, text: str) -> dict[str, Any]:
        out = {"role": "assistant", "content": None} | self.delta(text, last=True)
        if "tool_calls" in out:
            out["tool_calls"] = _joined(out["tool_calls"])
        elif out["content"] is None:
            out["content"] = ""
        return out

    def _calls(self, piece: Piece) -> list[dict[str, Any]]:
        self._called = self._called or bool(piece.calls)
        return [{"index": c.index, "function": {"arguments": c.arguments}} if c.name is None else
                {"index": c.index, "id": self._id(), "type": "function",
                 "function": {"name": c.name, "arguments": c.arguments}} for c in piece.calls]

    def _id(self) -> str:
        """Some templates refuse any id but nine letters or digits."""
        return "".join(secrets.choice(ID_ALPHABET) for _ in range(self._id_chars))


def _joined(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whole calls of their parts: the first part of each has its id and name."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        if delta["index"] in calls:
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
        else:
            calls[delta["index"]] = {key: delta[key] for key in ("id", "type", "function")}
    return list(calls.values())
