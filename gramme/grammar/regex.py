"""Repetitions of a regular expression: what the engine below would take, and its author cannot have meant.

It reads `foo**` as (foo*)*, and `^+` or `a{1000000000}` without a word. Here they are refused, with their place. Knows
only as much of the syntax as it takes to tell a repetition from a character; whether the rest is right others say.
"""
import re
from dataclasses import dataclass

MAX_REPEATS = 1 << 16  # of one part, nested counts multiplied: no context holds more
REPEAT = re.compile(r"[*+?]|\{\d+(?:,\d*)?\}")
ESCAPE = re.compile(r"\\(?:[pPxuU]\{[^}]*\}|.)", re.DOTALL)
GROUP = re.compile(r"\(\?(?:P?<\w+>|[a-zA-Z-]*:|[a-zA-Z-]+\)|)")
NOTHING, PART, REPEATED, LAZY = range(4)  # what stands before the next character


@dataclass
class Level:
    """An open group: what was read last in it, how often that may come, and the most of all in it."""

    before: int = NOTHING
    times: int = 1
    most: int = 1


def misread(pattern: str) -> str | None:
    """Why its repetitions cannot be meant, and where; None: they may be. Linear in the pattern's length."""
    levels, at = [Level()], 0
    while at < len(pattern):
        level, c = levels[-1], pattern[at]
        repeat = REPEAT.match(pattern, at)
        if c == "?" and level.before == REPEATED:
            level.before, at = LAZY, at + 1
        elif repeat:
            text = repeat[0]
            if level.before != PART:
                return f"at character {at}: {text} repeats {'a repetition' if level.before else 'nothing'}"
            level.before, level.times = REPEATED, level.times * _count(text)
            level.most = max(level.most, level.times)
            if level.most > MAX_REPEATS:
                return f"at character {at}: {text} makes more than {MAX_REPEATS} repetitions"
            at += len(text)
        else:
            at = _step(pattern, at, levels)
    return None


def _count(text: str) -> int:
    """How often at most; without an end, how often at least."""
    if text in "*+?":
        return 1
    least, _, most = text[1:-1].partition(",")
    return max(1, int((most or least)[:12]))


def _step(pattern: str, at: int, levels: list[Level]) -> int:
    """Over one character, class, escape or group's mark; returns the place behind it."""
    level, c, end = levels[-1], pattern[at], at + 1
    if c == "(":
        found = GROUP.match(pattern, at)
        end = found.end() if found else end
        if not (found and found[0].endswith(")")):  # which only sets flags
            levels.append(Level())
    elif c == ")" and len(levels) > 1:
        inner = levels.pop()
        levels[-1].before, levels[-1].times = PART, inner.most
        levels[-1].most = max(levels[-1].most, inner.most)
    elif c in "^|":
        level.before = NOTHING
    else:
        if c == "[":
            end = _class_end(pattern, at)
        elif c == "\\" and (found := ESCAPE.match(pattern, at)):
            end = found.end()
        level.before, level.times = PART, 1
    return end


def _class_end(pattern: str, at: int) -> int:
    """Behind the class that begins here; classes nest, and a bracket may come first as itself."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "[":
            depth += 1
            at += 1 + (pattern[at + 1 : at + 2] == "^")
            at += pattern[at : at + 1] == "]"
            continue
        if pattern[at] == "]":
            depth -= 1
            if not depth:
                return at + 1
        at += 2 if pattern[at] == "\\" else 1
    return at
