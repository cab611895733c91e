"""Every law runs over every backend present."""
import pytest
from engines import BACKENDS, maker


@pytest.fixture(params=BACKENDS)
def make(request):
    return maker(request.param)
