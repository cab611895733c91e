"""Inputs made from the document of the API, right ones and wrong ones: no 5xx, and errors in their form."""
import json
import os

import pytest

from gramme.serve.app import ROUTES

hypothesis = pytest.importorskip("hypothesis")
schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))  # for each operation and mode
SHORT = hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
                            suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate])
OPTIONS = ("dummy:tiny", "--max-model-len", "32", "--no-access-log")
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


@pytest.fixture(scope="module")
def document(served):
    return schemathesis.openapi.from_url(served.url + "/openapi.json")


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.value)
@pytest.mark.parametrize("path", [p for p, (method, _, _) in ROUTES.items() if method == "POST"])
def test_no_input_is_answered_with_a_fault_of_ours(document, canary, path, mode):
    @SHORT
    @hypothesis.given(case=document[path]["POST"].as_strategy(generation_mode=mode))
    def check(case):
        reply = case.call(timeout=60)
        assert reply.status_code < 500, reply.text[:300]
        if reply.status_code >= 400:
            assert set(json.loads(reply.content)["error"]) == {"message", "type", "param", "code"}

    check()
    canary.check()
