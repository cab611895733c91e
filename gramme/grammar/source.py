"""From what was asked (schema, regex, choice, Lark) to llguidance's text, and the checks that need no tokenizer.

Nothing here opens a file or a socket: a `$ref` that leaves the schema is refused. What cannot be compiled is a
RequestError that says where and why; there is no lenient mode, an unknown keyword is an error too.
"""
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from gramme.grammar.regex import misread
from gramme.request import RequestError, StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MAX_DEPTH = 64
MAX_LEAST = 1 << 16  # minLength, minItems, minProperties: an answer that no context holds can never be finished
MAX_PLACES = 256  # subschemas that are tried to find the place of an error
WHITESPACE = r"[ \n\r\t]{1,32}"  # between JSON tokens; unbounded, a model may write blanks for ever
LEAST = ("minLength", "minItems", "minProperties")
LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")  # keywords whose value holds schemas
MAPS = ("properties", "patternProperties", "$defs", "definitions")
SINGLE = ("items", "additionalProperties", "additionalItems")
PARAM = "structured_outputs"


def limits() -> "LLParserLimits":
    """Bounds of the work of one grammar. llguidance counts steps, not seconds: about 50,000 steps of fuel a
    millisecond to build, 14,000 lexer steps and 20,000 items a millisecond in a mask.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(max_items_in_row=2000, initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000,
                          step_max_items=50_000, max_lexer_states=50_000, max_grammar_size=200_000,
                          verbose_errors=False)


def grammar_text(asked: StructuredOutputsParams) -> str:
    """llguidance's text of what was asked; equal texts are equal grammars. Raises RequestError for a bad schema."""
    from llguidance import LLMatcher

    if asked.json is not None:
        return schema_text(parse_schema(str(asked.json)))
    if asked.json_object:
        return schema_text({"type": "object"})
    if asked.regex is not None:
        _check_pattern(asked.regex, "")
        return LLMatcher.grammar_from_regex(asked.regex)
    if asked.choice is not None:
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(quoted, asked.choice)))
    return LLMatcher.grammar_from_lark(str(asked.grammar))


def quoted(text: str) -> str:
    """A Lark string literal."""
    return json.dumps(text, ensure_ascii=False)


def schema_text(schema: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": WHITESPACE})


def check(asked: StructuredOutputsParams, param: str = PARAM) -> None:
    """Compile without a tokenizer. Raises RequestError with the place and the reason; `param` is the field at fault.

    Takes about a millisecond, at most some hundreds (the limits above), and lets other threads run.
    """
    try:
        text = grammar_text(asked)
        why = _error(text)
        if why is not None:
            at = f"at {place(parse_schema(asked.json))}: " if isinstance(asked.json, str) else ""
            raise RequestError(f"{at}{why}", PARAM)
    except RequestError as error:
        raise RequestError(f"{_kind(asked)} {error}", param) from None


def _kind(asked: StructuredOutputsParams) -> str:
    names = {"json": "the schema cannot be followed:", "regex": "the regex cannot be followed:",
             "grammar": "the grammar cannot be followed:"}
    return next((said for name, said in names.items() if getattr(asked, name) is not None), "the choices:")


def _error(text: str) -> str | None:
    from llguidance import LLMatcher

    _, messages = LLMatcher.validate_grammar_with_warnings(text, limits=limits())  # a warning: something is ignored
    if not messages or "no tokenizer" in messages[0]:  # named control tokens: the engine, which knows them, decides
        return None
    return one_line(messages[0])


def one_line(message: str) -> str:
    """Its first line, which holds the position, and the reason that a regex error gives in its last one."""
    first, *others = message.removeprefix("WARNING: ").strip().splitlines() or ["unknown error"]
    reason = next((line.removeprefix("error: ") for line in others if line.startswith("error: ")), "")
    return f"{first[:200]} {reason[:200]}".strip()


def parse_schema(text: str) -> Mapping[str, Any]:
    """A JSON schema whose bounds hold and whose references stay inside. Raises RequestError naming the place."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"it is not JSON: {error!s:.100}", PARAM) from None
    if not isinstance(schema, Mapping | bool):
        raise RequestError(f"at #: a schema is an object, true or false, not {text[:40]}", PARAM)
    for path, node in _nodes(schema):
        _check_node(path, node)
    return schema if isinstance(schema, Mapping) else {} if schema else {"enum": []}  # llguidance takes objects only


def _check_node(path: str, node: Any) -> None:
    if path.count("/") > MAX_DEPTH:
        raise RequestError(f"at {path[:80]}...: it is nested deeper than {MAX_DEPTH}", PARAM)
    if not isinstance(node, Mapping):
        return
    ref = node.get("$ref", "#")
    if isinstance(ref, str) and not ref.startswith("#"):
        raise RequestError(f"at {path}/$ref: {ref[:80]!r} is outside the schema; nothing is fetched", PARAM)
    if "x-guidance" in node:
        raise RequestError(f"at {path}: x-guidance is not supported", PARAM)
    for name in LEAST:
        least = node.get(name, 0)
        if type(least) in (int, float) and least > MAX_LEAST:
            raise RequestError(f"at {path}/{name}: {least:g} is more than {MAX_LEAST}", PARAM)
    keyed = node.get("patternProperties")
    for pattern in (node.get("pattern"), *(keyed if isinstance(keyed, Mapping) else ())):
        if isinstance(pattern, str):
            _check_pattern(pattern, f"at {path}: ")


def _check_pattern(pattern: str, where: str) -> None:
    why = misread(pattern)
    if why is not None:
        raise RequestError(f"{where}the pattern {pattern!r:.60}: {why}", PARAM)


def _nodes(value: Any) -> Iterator[tuple[str, Any]]:
    """(place, value) of everything in a JSON value, outermost first; iterative, so depth costs no stack."""
    left = [("#", value)]
    while left:
        path, node = left.pop()
        yield path, node
        if isinstance(node, Mapping):
            left += [(f"{path}/{key}", child) for key, child in node.items() if isinstance(child, Mapping | list)]
        elif isinstance(node, list):
            left += [(f"{path}/{i}", child) for i, child in enumerate(node) if isinstance(child, Mapping | list)]


def place(schema: Mapping[str, Any]) -> str:
    """Where a schema that does not compile is at fault: the innermost subschema that does not compile alone."""
    own = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
    path, node, left = "#", schema, MAX_PLACES
    while True:
        children = list(islice(_subschemas(node), left))
        left -= len(children)
        found = next(((step, child) for step, child in children if _error(schema_text({**own, **child}))), None)
        if found is None:
            return path
        path, node = f"{path}/{found[0]}", found[1]


def _subschemas(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    groups = [(key, node.get(key)) for key in (*MAPS, *LISTS)]
    named = [(f"{key}/{name}", child) for key, group in groups if isinstance(group, Mapping)
             for name, child in group.items()]
    listed = [(f"{key}/{i}", child) for key, group in groups if isinstance(group, list)
              for i, child in enumerate(group)]
    for step, child in (*named, *listed, *((key, node.get(key)) for key in SINGLE)):
        if isinstance(child, Mapping):
            yield step, child
