"""Tool calls in an answer's text: the forms in which models write them, and a reader that takes the text in any pieces.

Each character is looked at a bounded number of times: what turns out to be no call is given back as content and never
read again, so that no text is slow.
"""
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 128  # of brackets in a call; deeper is no call
MAX_HEAD = 200  # characters between the mark and the first bracket
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Form:
    """How a family of models writes calls.

    To write: `first`, a call, `between`, another call ..., `last`; a call is {"name": NAME, KEY: ARGUMENTS}, or NAME,
    `named`, ARGUMENTS. To read, more freely: `mark`, `head` up to a brace (its group is a name), an object, then
    `separators` and more objects, or `closing`. `bare`: an object at the very beginning of the answer is a call too.
    """

    mark: str
    first: str
    between: str
    last: str
    key: str = "arguments"
    named: str = ""
    head: re.Pattern[str] = re.compile(r"\s*()")
    separators: str = ""
    closing: str = ""
    bare: bool = False
    id_chars: int = 24  # letters and digits of an id


_HEAD = re.compile(rf"\s*\[?\s*()|\s*({NAME.pattern})(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*")
HERMES = Form("<tool_call>", "<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>",
              closing="</tool_call>")  # and Qwen
MISTRAL = Form("[TOOL_CALLS]", "[TOOL_CALLS][", ", ", "]", head=_HEAD, separators=",", closing="]", id_chars=9)
MISTRAL_NAMED = Form("[TOOL_CALLS]", "[TOOL_CALLS]", "[TOOL_CALLS]", "", named="[ARGS]", head=_HEAD, separators=",",
                     closing="]", id_chars=9)  # since tokenizer v11
LLAMA3 = Form("<|python_tag|>", "", "; ", "", key="parameters", separators=";,", bare=True)


def tool_form(template: str) -> Form | None:
    """The form that a chat template shows; None: it shows no tools."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template:
        return HERMES
    return LLAMA3 if re.search(r"\btools\b", template) else None


@dataclass
class CallPiece:
    """A part of call `index`: its name, with its first part, and characters of its arguments' JSON."""

    index: int
    name: str | None = None
    arguments: str = ""


class JsonSpan:
    """Finds the end of a JSON object or array, cut anywhere, by its brackets and strings alone."""

    SKIP = re.compile(r"[\s0-9:,.+\-truefalsnE]*")
    STRING = re.compile(r'[^"\\]*')

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._string = self._escape = False

    def scan(self, text: str, at: int) -> tuple[int, bool | None]:
        """(where it stopped; True: just behind the end, False: at what is no JSON, None: the text ended first)"""
        while at < len(text):
            if self._string:
                at = self._in_string(text, at)
                continue
            at = _end(self.SKIP, text, at)
            if at == len(text):
                break
            c = text[at]
            if c in "{[" and len(self._closers) < MAX_DEPTH:
                self._closers.append("}" if c == "{" else "]")
            elif c == '"':
                self._string = True
            elif self._closers and c == self._closers[-1]:
                self._closers.pop()
                if not self._closers:
                    return at + 1, True
            else:
                return at, False
            at += 1
        return at, None

    def _in_string(self, text: str, at: int) -> int:
        if self._escape:
            self._escape = False
            return at + 1
        at = _end(self.STRING, text, at)
        if at < len(text):
            self._escape = self._string = text[at] == "\\"
            return at + 1
        return at


class CallReader:
    """Text in, content and parts of calls out. `certain`: the calls follow the form exactly, so their arguments come as
    they are written; otherwise a call is given when it is whole, for only then is it known to be one.

    States: start, text, head (behind the mark), body (in an object), tail (behind it); and for certain calls, instead
    of body, begin (up to the arguments), arguments, close. `names`: functions that may be called; none: any.
    """

    def __init__(self, form: Form, names: Collection[str] = (), certain: bool = False, most: int | None = None):
        self._form, self._names, self._certain, self._most = form, frozenset(names), certain, most
        self._state = "start" if form.bare else "text"
        self._held = ""  # the end of the text so far, which may be the beginning of a mark
        self._raw: list[str] = []  # what may be a call so far
        self._head_text = self._begun = ""
        self._body_text: list[str] = []
        self._span = JsonSpan()
        self._name = ""  # of the call, where it stands before its arguments
        self._count = 0
        self._out: list[str | CallPiece] = []

    def feed(self, text: str) -> list[str | CallPiece]:
        text, self._held = self._held + text, ""
        at = 0
        while at < len(text):
            at = getattr(self, "_" + self._state)(text, at)
        out, self._out = self._out, []
        return out

    def finish(self) -> list[str | CallPiece]:
        if self._state in ("head", "body", "begin"):
            self._give_back()
        out, self._out = [*self._out, self._held], []
        return out

    def _give_back(self) -> None:
        self._out += [*self._raw, self._head_text, *self._body_text, self._begun]
        self._begin_raw([])
        self._state = "text"

    def _begin_raw(self, raw: list[str]) -> None:
        self._raw, self._head_text, self._body_text, self._begun = raw, "", [], ""

    def _start(self, text: str, at: int) -> int:
        if text[at] == "{":
            self._enter([])
        elif text[at].isspace():
            self._out.append(text[at])
            return at + 1
        else:
            self._state = "text"
        return at

    def _text(self, text: str, at: int) -> int:
        found = text.find(self._form.mark, at)
        if found >= 0:
            self._out.append(text[at:found])
            self._begin_raw([self._form.mark])
            self._state = "head"
            return found + len(self._form.mark)
        keep = overlap(text[max(at, len(text) - len(self._form.mark)) :], self._form.mark)
        self._out.append(text[at : len(text) - keep])
        self._held = text[len(text) - keep :]
        return len(text)

    def _head(self, text: str, at: int) -> int:
        known = len(self._head_text)
        head = self._head_text = self._head_text + text[at : at + MAX_HEAD - known]
        mark, brace = head.find(self._form.mark), head.find("{")
        if mark >= 0 and (brace < 0 or mark < brace):  # calls begin anew
            self._head_text = head[:mark]
            self._give_back()
            self._begin_raw([self._form.mark])
            self._state = "head"
            return at + mark + len(self._form.mark) - known
        if brace >= 0:
            self._head_text = head[:brace]
            fits = self._form.head.fullmatch(head[:brace])
            if fits:
                self._name = next(filter(None, fits.groups()), "")
                self._enter([*self._raw, head[:brace]])
            else:
                self._give_back()
            return at + brace - known
        if len(head) == MAX_HEAD:
            self._give_back()
        return at + len(head) - known

    def _enter(self, raw: list[str]) -> None:
        """A brace comes: the call's object, or its arguments where its name was before them."""
        self._begin_raw(raw)
        self._span = JsonSpan()
        self._state = "body"
        if self._certain and self._name:
            self._open(self._name)
        elif self._certain:
            self._state = "begin"

    def _body(self, text: str, at: int) -> int:
        end, whole = self._span.scan(text, at)
        self._body_text.append(text[at:end])
        if whole:
            call = self._call("".join(self._body_text))
            if call is None:
                self._give_back()
            else:
                self._emit(*call)
                self._state = "text" if self._name else "tail"
        elif whole is False:
            self._give_back()
        return end

    def _call(self, body: str) -> tuple[str, str] | None:
        """(name, arguments as JSON) when the body is a call."""
        try:
            value: Any = json.loads(body, strict=False)
            name = self._name or value.get("name")
            given = value if self._name else value.get("arguments", value.get("parameters", {}))
            given = json.loads(given) if isinstance(given, str) else given
        except (ValueError, RecursionError):
            return None
        known = isinstance(name, str) and (name in self._names if self._names else NAME.fullmatch(name))
        return (name, _json(given)) if known and isinstance(given, dict) else None

    def _begin(self, text: str, at: int) -> int:
        known = len(self._begun)
        self._begun += text[at : at + MAX_HEAD - known]
        found = re.match(rf'\{{"name": "({NAME.pattern})", "{self._form.key}": ', self._begun)
        if found is None:
            if len(self._begun) == MAX_HEAD:
                self._give_back()
            return at + MAX_HEAD - known
        self._open(found[1])
        return at + found.end() - known

    def _open(self, name: str) -> None:
        self._emit(name, "")
        self._span, self._state = JsonSpan(), "arguments"

    def _arguments(self, text: str, at: int) -> int:
        end, whole = self._span.scan(text, at)
        if self._most is None or self._count <= self._most:
            self._out.append(CallPiece(self._count - 1, None, text[at:end]))
        if whole is not None:
            self._state = "text" if self._name else "close"
        return end

    def _close(self, text: str, at: int) -> int:
        self._state = "tail"
        return at + (text[at] == "}")

    def _tail(self, text: str, at: int) -> int:
        """Behind a call: blanks, a separator, another object, the closing mark; anything else is content again."""
        closing = self._form.closing
        rest = text[at : at + len(closing)]
        if text[at].isspace() or text[at] in self._form.separators:
            return at + 1
        if text[at] == "{" and self._form.separators:
            self._enter([])
        elif rest != closing and closing.startswith(rest):
            self._held = rest
            return len(text)
        else:
            self._state = "text"
            at += len(closing) if rest == closing else 0
        return at

    def _emit(self, name: str, arguments: str) -> None:
        self._count += 1
        if self._most is None or self._count <= self._most:
            self._out.append(CallPiece(self._count - 1, name, arguments))


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() or _encodes(text) else json.dumps(value)


def _encodes(text: str) -> bool:
    """Not so with half a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def overlap(text: str, mark: str) -> int:
    """The longest end of `text` that is a beginning of `mark`, but not all of it."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
