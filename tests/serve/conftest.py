"""One server for the tests of a file that ask for it; a file says how it is started in OPTIONS."""
import pytest
from canary import TINY, Canary, Served


@pytest.fixture(scope="module")
def served(request):
    with Served(*getattr(request.module, "OPTIONS", TINY)) as s:
        yield s


@pytest.fixture(scope="module")
def canary(served):
    return Canary(served)


@pytest.fixture(scope="module")
def base(served):
    return served.url


@pytest.fixture(scope="module")
def client(base):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=base + "/v1", api_key="-", max_retries=0) as c:
        yield c
