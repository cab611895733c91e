"""A Lark grammar of tool calls in a model's own form: calls only, calls or an answer in a form, or any text in which
whatever begins is a call.
"""
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from gramme.grammar.source import WHITESPACE, parse_schema, quoted
from gramme.request import RequestError, StructuredOutputsParams

ANY_OBJECT = {"type": "object"}


class Layout(Protocol):
    """`first`, a call, `between`, another call ..., `last`; a call is {"name": NAME, KEY: ARGUMENTS} or NAME, `named`,
    ARGUMENTS. `mark` says that calls begin; `bare`: so does a brace at the very beginning.
    """

    @property
    def mark(self) -> str: ...
    @property
    def first(self) -> str: ...
    @property
    def between(self) -> str: ...
    @property
    def last(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def named(self) -> str: ...
    @property
    def bare(self) -> bool: ...


def calls_grammar(functions: Sequence[tuple[str, Mapping[str, Any]]], layout: Layout, control: Mapping[str, int], *,
                  several: bool = True, free: bool = False, answer: StructuredOutputsParams | None = None) -> str:
    """functions: (name, schema of its arguments). control: strings that are one control token, and its id.

    `free`: any text around the calls, and none at all is allowed; with `answer`, calls or an answer in that form.
    """
    lark = partial(_terms, control)
    more = f"({lark(layout.between)} call)*" if several else ""
    calls = f"{lark(layout.first)} call {more} {lark(layout.last)}"
    rules = [_call(i, name, layout, lark) for i, (name, _) in enumerate(functions)]
    rules += [f"args{i}: %json {_schema(schema)}" for i, (_, schema) in enumerate(functions)]
    rules.append("call: " + " | ".join(f"call{i}" for i in range(len(functions))))
    if free and answer is not None:
        return "\n".join([f"start: {calls} | answer", f"answer: {_form(answer)}", *rules])
    if not free:
        return "\n".join([f"start: {calls}", *rules])
    inner = f"{lark(layout.first.removeprefix(layout.mark))} call {more} {lark(layout.last)}"
    text = "TEXT: /(.|\\n)*/"
    if layout.bare:
        return "\n".join([f"start: {calls} | PLAIN", r"PLAIN: /(\s*[^{\s](.|\n)*)?/", *rules])
    if layout.mark in control:
        return "\n".join([f"start: (TEXT {lark(layout.mark)} {inner})* TEXT", text, *rules])
    begin = f"begin[lazy]: /(.|\\n)*/ {quoted(layout.mark)}"
    return "\n".join([f"start: (begin {inner})* TEXT", begin, text, *rules])


def _call(i: int, name: str, layout: Layout, lark: Callable[[str], str]) -> str:
    if layout.named:
        return f"call{i}: {quoted(name)} {lark(layout.named)} args{i}"
    begin = f'{{"name": {quoted(name)}, {quoted(layout.key)}: '
    return f'call{i}: {quoted(begin)} args{i} "}}"'


def _form(asked: StructuredOutputsParams) -> str:
    """The right side of a rule. Raises RequestError for a Lark grammar, whose rules might have the names of ours."""
    if asked.grammar is not None:
        raise RequestError("a grammar cannot be combined with tools that may be called", "structured_outputs")
    if asked.regex is not None:
        return "/" + re.sub(r"\\.|/|\n", lambda m: {"/": r"\/", "\n": r"\n"}.get(m[0], m[0]), asked.regex) + "/"
    if asked.choice is not None:
        return " | ".join(map(quoted, asked.choice))
    return f"%json {_schema(ANY_OBJECT if asked.json is None else parse_schema(str(asked.json)))}"


def _schema(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}})


def _terms(control: Mapping[str, int], text: str) -> str:
    """A text as Lark terms: its control strings as tokens, the rest as strings."""
    marks = sorted(filter(None, control), key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]
    return " ".join(f"<[{control[part]}]>" if part in control else quoted(part) for part in parts if part)
