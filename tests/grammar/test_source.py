"""What cannot be followed is refused with its place and its reason, before any token; nothing is opened or fetched."""
import json
import socket
import time

import pytest

from gramme.grammar.source import MAX_LEAST, check
from gramme.request import MAX_CHOICES, MAX_GRAMMAR_CHARS, RequestError, StructuredOutputsParams


def nested(depth):
    return '{"type":"array","items":' * depth + "true" + "}" * depth


REFUSED = [
    (dict(json={"type": "sound"}), "at #: .*sound"),
    (dict(json={"type": 123}), "at #: "),
    (dict(json={"properties": {"a": {"items": {"anyOf": [{}, {"type": "x"}]}}}}), "at #/properties/a/items/anyOf/1: "),
    (dict(json={"items": {"$ref": "#/$defs/d"}, "$defs": {"d": {"pattern": "(?<=x)", "type": "string"}}}),
     r"at #/\$defs/d: .*look-around"),
    (dict(json={"type": "string", "pattern": r"(a)\1"}), "backreferences"),
    (dict(json={"type": "string", "pattern": "(" * 20_000}), "unclosed"),
    (dict(json={"$ref": "http://169.254.169.254/latest"}), r"at #/\$ref: .*nothing is fetched"),
    (dict(json={"properties": {"a": {"$ref": "file:///etc/passwd"}}}), r"at #/properties/a/\$ref: .*nothing is"),
    (dict(json={"$ref": "other.json"}), "nothing is fetched"),
    (dict(json={"$ref": "#/nowhere"}), "nowhere"),
    (dict(json={"not": {"type": "string"}}), "not"),
    (dict(json={"if": {}, "then": {}}), "if"),
    (dict(json={"unevaluatedProperties": False}), "unevaluatedProperties"),
    (dict(json={"not": {}, "x-guidance": {"lenient": True}}), "x-guidance"),
    (dict(json={"enum": []}), "nsatisfiable"),
    (dict(json=False), "nsatisfiable"),
    (dict(json={"type": "integer", "minimum": 5, "maximum": 3}), "nsatisfiable"),
    (dict(json={"type": "array", "minItems": 10**9}), f"#/minItems: 1e.09 is more than {MAX_LEAST}"),
    (dict(json={"items": {"minLength": 10**9}}), "#/items/minLength"),
    (dict(json=nested(66)), "deeper"),
    (dict(json=nested(2000)), "deeper|depth|recursion"),
    (dict(json="{"), "not JSON"),
    (dict(json="[]"), "an object, true or false"),
    (dict(json={"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(8)]}
                          for i in range(12)]}), "too large"),
    (dict(regex="foo["), r"1\(8\): .*unclosed"),
    (dict(regex="(?:"), "unclosed"),
    (dict(regex="foo**"), "at character 4: . repeats a repetition"), (dict(regex="^+[a-z]$"), "character 1.*nothing"),
    (dict(regex="^{2}x"), "character 1: .2. repeats nothing"), (dict(regex="a{2}{3}"), "repeats a repetition"),
    (dict(regex="(?i)*"), "nothing"), (dict(regex="a|b|+"), "nothing"), (dict(regex="[]*]?+"), "character 5"),
    (dict(regex="a{1000000000}"), "more than 65536"), (dict(regex="((a{1,1000}){1,1000}){1,1000}"), "more than 65536"),
    (dict(json={"properties": {"a": {"type": "string", "pattern": "a+*"}}}), "at #/properties/a: .*'a..'.*repetition"),
    (dict(json={"patternProperties": {"^a{70000}$": {}}}), "more than 65536"),
    (dict(grammar="start: foo"), r'1\(8\): unknown name: "foo"'),
    (dict(grammar='root ::= "a"'), r"1\(7\)"),
    (dict(grammar="start: @other"), "other"),
    (dict(grammar="start: " + "(" * 30_000 + '"a"' + ")" * 30_000), "nested"),
    (dict(grammar='start: %json {"not": {}, "x-guidance": {"lenient": true}}'), "not"),
    (dict(grammar='start: %json {"$ref": "file:///etc/passwd"}'), "passwd"),
]


@pytest.mark.parametrize("asked, words", REFUSED, ids=lambda x: str(x)[:50])
def test_what_cannot_be_followed_is_refused_with_place_and_reason(asked, words, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    made = StructuredOutputsParams(**asked)
    began = time.monotonic()
    with pytest.raises(RequestError, match=words) as caught:
        check(made, "response_format")
    assert caught.value.param == "response_format"
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)
    assert time.monotonic() - began < 10, "a hang limit: about 0.1 s is usual"


@pytest.mark.parametrize("asked", [
    {}, {"json": {}, "regex": "a"}, {"json_object": False}, {"choice": []}, {"choice": ["a", ""]}, {"choice": "ab"},
    {"json": " " * (MAX_GRAMMAR_CHARS + 1)}, {"regex": ""}, {"choice": ["a"] * (MAX_CHOICES + 1)},
    {"choice": ["a" * MAX_GRAMMAR_CHARS, "b"]}, {"json": {"enum": [float("nan")]}}, {"grammar": 5},
], ids=lambda x: str(x)[:40])
def test_exactly_one_form_of_bounded_size(asked):
    with pytest.raises(RequestError) as caught:
        StructuredOutputsParams(**asked)
    assert caught.value.param == "structured_outputs"


@pytest.mark.parametrize("asked", [
    dict(json=True), dict(json={}), dict(json='{"type": "null"}'), dict(regex="(a+)+$"),
    dict(regex=r"\*+[*+?{]*?\\{2}(?:a??b{1,900})+?[^]*]*"),
    dict(regex=r"(?P<y>\d{4})-\p{L}+|(x|[[:alpha:]&&[^*]]*)+\{2"),
    dict(json={"properties": {"pattern": {"type": "null"}}}),
    dict(regex="(" * 99 + "a" + "){1,2}" * 16 + ")" * 83), dict(choice=['a "b"\n', "é"]),
    dict(grammar='start: "a" | start "b"'), dict(json_object=True), dict(grammar="start: <|named|>"),
    dict(json={"properties": {"$ref": {"type": "string"}}}), dict(json=json.loads(nested(20))),
    dict(json={"$defs": {"t": {"properties": {"c": {"items": {"$ref": "#/$defs/t"}}}}}, "$ref": "#/$defs/t"}),
], ids=str)
def test_what_can_be_followed_is_not_refused(asked):
    check(StructuredOutputsParams(**asked))
