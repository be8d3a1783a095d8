"""What of an adapter leaves the device: the model card, as Hugging Face's own library reads it."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from tiny import write_tiny

from edgetune.adapters.published import model_card, public_record
from edgetune.formats.gguf import open_gguf

RUN = {
    "edgetune": "0.1.0", "steps": 4, "seed": 0, "options": {"rank": 8, "lr": 1e-3, "system": "a | b\n# no heading"},
    "objective": {"name": "sft"}, "origin": {"data": "/home/me/rows.jsonl"},
    "base": {"name": "m.gguf", "path": "/home/me/m.gguf", "fingerprint": "sha256:00", "architecture": "llama"},
    "data": {"rows": 20, "tokens": 764, "supervised": 272},
    "held_out": {"rows": 4, "loss_before": 2.5, "loss_after": 0.9},
    "verdict": {"kind": "still falling", "sentence": "edgetune resume /home/me/out", "step": 4},
    "answers": {"rows": 4, "before": 0.0, "after": 0.75, "pairs": [{"prompt": "my secret"}]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return open_gguf(write_tiny(tmp_path_factory.mktemp("base") / "tiny.gguf"))


def with_metadata(base, **metadata: str):
    """The same file, which says more of itself."""
    return replace(base, metadata={**base.metadata, **{key.replace("__", "."): text for key, text in metadata.items()}})


def test_the_card_is_one(base):
    said = with_metadata(base, general__license="apache-2.0", general__name="HuggingFaceTB/SmolLM2-135M-Instruct")
    card = ModelCard(model_card(RUN, said, "```sh\nedgetune chat\n```"))
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["lora", "gguf", "edgetune"]
    for line in ("| rows | 20 |", "| loss after | 0.9 |", "| exact after | 75% |", "| rank | 8 |",
                 "| system | a \\| b # no heading |"):
        assert line in card.text, line


def test_names_from_a_file_cannot_write_the_card(base):
    said = with_metadata(base, general__license='mit"\nbase_model: evil/other\n---', general__name="a/b\n---\n# hi")
    card = ModelCard(model_card(RUN, said, "use"))
    assert card.data.license == 'mit"\nbase_model: evil/other\n---'
    assert card.data.base_model == "a/b\n---\n# hi"
    assert "\n# hi" not in card.text


def test_an_imported_adapter_has_a_card_without_tables(base):
    assert "|" not in model_card({}, base, "use")


def test_the_record_tells_nothing_private():
    found = json.dumps(public_record(RUN))
    assert "secret" not in found
    assert "/home" not in found
    assert json.loads(found)["answers"]["after"] == 0.75
    assert json.loads(found)["base"]["name"] == "m.gguf"
