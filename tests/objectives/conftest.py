"""A decoder and the same model in transformers with the same adapter, of which the gradients are compared."""

import pytest
from decoder_cases import adapted, make_case


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """A decoder, and the same model in transformers with the same adapter."""
    case = make_case("qwen3", tmp_path_factory.mktemp("case"), kept=2)
    return case, adapted(case)
