"""The rest of the API: responses, scores, the document of it all; and that no field of a body is without a bound."""
import json

import msgspec
import pytest
from msgspec import inspect

from gramme.request import SamplingParams
from gramme.serve.app import ROUTES

pytest.importorskip("openai")
BODIES = sorted({body for _, _, body in ROUTES.values() if body is not None}, key=lambda b: b.__name__)


def test_responses_stream_the_text_of_the_whole_answer(client):
    ask = {"model": "dummy:tiny", "input": "bonjour", "instructions": "be short", "max_output_tokens": 8,
           "temperature": 0}
    whole = client.responses.create(**ask)
    events = list(client.responses.create(**ask, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type.removeprefix("response.") for e in events if "delta" not in e.type]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[4:] == ["output_text.done", "content_part.done", "output_item.done", whole.status]
    assert "".join(e.delta for e in events if "delta" in e.type) == whole.output_text == events[-1].response.output_text
    assert whole.usage.output_tokens == 8 and whole.status == "incomplete"


def test_responses_take_messages_of_parts(client):
    parts = [{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
             {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]}, {"role": "user", "content": "c"}]
    assert client.responses.create(model="dummy:tiny", input=parts, max_output_tokens=3).usage.output_tokens <= 3


def test_a_text_is_nearest_to_itself(served):
    documents = ["a dog", "un chat", "the tax of a dog"]
    _, ranked = served.post("/v1/rerank", {"query": "un chat", "documents": documents, "top_n": 2})
    assert len(ranked["results"]) == 2 and ranked["results"][0]["index"] == 1
    assert ranked["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    _, scored = served.post("/v1/score", {"text_1": "un chat", "text_2": documents})
    assert [s["score"] for s in scored["data"]][1] == pytest.approx(1, abs=1e-5)
    assert scored["data"][0]["score"] < 0.9999


def test_facts_are_told_and_paths_are_not(served):
    assert json.loads(served.get("/version")[1])["version"]
    props = json.loads(served.get("/props")[1])
    assert props["default_generation_settings"]["n_ctx"] == 512 and "/" not in props["model_alias"]


def test_every_reply_has_an_id_of_its_own(served):
    ids = {served.request("GET", "/version", headers={"x-request-id": "mine"})[1]["x-request-id"] for _ in range(3)}
    assert len(ids) == 3 and "mine" not in ids


def bounded(kind):
    """Whether a value of this type is limited: counts, lengths and numbers, at every depth."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            return kind.ge is not None and kind.le is not None
        case inspect.StrType():
            return kind.max_length is not None
        case inspect.ListType():
            return kind.max_length is not None and bounded(kind.item_type)
        case inspect.DictType(value_type=inspect.AnyType()):  # free JSON: the body's size is its bound
            return True
        case inspect.DictType():
            return kind.max_length is not None and bounded(kind.value_type)
        case inspect.UnionType():
            return all(map(bounded, kind.types))
        case inspect.StructType():
            return all(bounded(f.type) for f in kind.fields if f.name not in ENGINES)
        case inspect.BoolType() | inspect.NoneType() | inspect.LiteralType():
            return True
    return False


# Bounded by the engine's own records, see tests/test_request.py and the grammar's tests.
ENGINES = {*SamplingParams.__dataclass_fields__, "json", "regex", "choice", "grammar", "max_completion_tokens"}


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
def test_no_field_of_a_body_is_without_a_bound(body):
    for field in inspect.type_info(body).fields:
        if field.name not in ENGINES:
            assert bounded(field.type), f"{body.__name__}.{field.name} has no bound"


def test_a_field_without_a_bound_would_be_found():
    class Loose(msgspec.Struct):
        names: list[str]

    assert not bounded(inspect.type_info(Loose))


def test_the_document_holds_every_route_and_the_engines_bounds(served):
    made = json.loads(served.get("/openapi.json")[1])
    assert len(made["paths"]) == len(ROUTES)
    completion = made["components"]["schemas"]["Completion"]["properties"]
    assert completion["temperature"]["anyOf"][0]["maximum"] == 2 and completion["n"]["maximum"] == 128
