"""edgetune.parts.home: a house that a model which writes text has learned, by itself and after an encoder."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from commands import run
from encoders import WORDS, tiny_bert, write_encoder
from houses import house, write_house
from tiny import write_tiny

from edgetune.errors import FormatError, MismatchError
from edgetune.parts.home.house import FACTS, Facts, House
from edgetune.parts.home.learning import measured
from edgetune.parts.home.tools import Target
from edgetune.parts.home.understanding import (
    ByDecoder,
    InTurn,
    Understood,
    by_encoder,
    decoder_of,
    possible,
    understanding_of,
)
from edgetune.parts.home.updating import update_house
from edgetune.parts.home.wishes import MISSING, OTHER, UNFINISHED, WHICH, Wish

ON = Wish("HassTurnOn", Target("Hall Lamp", domain="light"))
OFF = Wish("HassTurnOff", Target("Hall Lamp", domain="light"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a house that an encoder and a model learned."""
    folder = tmp_path_factory.mktemp("both")
    model = write_tiny(folder / "tiny.gguf", formats="Q8_0")
    encoder = write_encoder(folder / "encoder.gguf", tiny_bert(), WORDS)
    run("home", "train", write_house(folder), "-o", folder / "house", "--count", 200, "--with", "both", "--encoder",
        encoder, "--decoder", model, "--threads", 1, "--json")
    return folder / "house"


@pytest.mark.dev
def test_both_learn_a_house(trained):
    found = House.open(trained)
    assert found.facts.asked == 20
    assert 0 <= found.facts.limit <= 1
    assert found.facts.models["with_"] == "both"
    assert (found.encoder / "adapter.gguf").exists()
    assert (found.decoder / "adapter.gguf").exists()


def test_the_decoder_writes_what_the_house_has(trained):
    found = House.open(trained)
    with decoder_of(found, threads=1) as decoder:
        for sentence in ("turn on the hall lamp", "open the awning to 30", "sing"):
            wishes, probability = decoder.written(sentence)
            assert all(possible(wish, found.home) == wish for wish in wishes)
            assert 0 <= probability <= 1
            assert decoder.understand(sentence).is_sure == (probability >= found.facts.limit)
        assert decoder.written("turn on the hall lamp") == decoder.written("turn on the hall lamp")


def test_the_decoder_is_asked_where_the_encoder_is_not_sure():
    def saying(wish, is_sure):
        return SimpleNamespace(busy_bytes=1, understand=lambda _: Understood((wish,), is_sure))

    assert InTurn([saying(ON, True), saying(OFF, True)]).understand("on").wishes == (ON,)
    assert InTurn([saying(ON, False), saying(OFF, True)]).understand("on").wishes == (OFF,)
    assert InTurn([saying(ON, False), saying(OFF, False)]).understand("on").sure_calls == []


@pytest.mark.parametrize(("template", "prompt"), [("chatml", "<user>dim it to 20</user>"), ("", "dim it to 20")])
def test_a_sentence_is_asked_as_it_was_learned(tmp_path, template, prompt):
    """A model without a chat template learns the text of a prompt, and then that of its completion."""
    asked = []
    served = SimpleNamespace(chat_template=template, render=lambda said, *_: f"<user>{said[0]['content']}</user>")
    done = SimpleNamespace(text=lambda: '{"tool": "other"}', logprobs=[])
    served.load_adapter = lambda *_: None
    one = SimpleNamespace(served=served, submit=lambda text, **_: asked.append(text) or done)
    facts = Facts("en", 200, 0, "", 200, decoder="x", limit=0.5)
    decoder = ByDecoder(House(tmp_path, facts, house(tmp_path)), one)
    assert decoder.understand("dim it to twenty") == Understood((Wish(why=OTHER),), is_sure=True)
    assert asked == [prompt]


def test_a_house_may_have_one_of_them(trained):
    found = House.open(trained)
    only = replace(found, facts=replace(found.facts, encoder=""))
    assert by_encoder(only) is None
    with understanding_of(only, threads=1) as alone, decoder_of(found, threads=1) as decoder:
        assert alone.understand("turn on the hall lamp").wishes == decoder.written("turn on the hall lamp")[0]
    only = replace(found, facts=replace(found.facts, decoder=""))
    with understanding_of(only, threads=1) as alone:
        assert alone.understand("turn on the hall lamp") == by_encoder(found).understand("turn on the hall lamp")


def test_the_least_probability_comes_from_held_out_sentences(trained, monkeypatch):
    found = House.open(trained)
    home = found.home
    rows = [SimpleNamespace(sentence=str(i), calls=[ON.call()]) for i in range(40)]
    written = [((ON if i < 20 else OFF,), 1 - i / 100) for i in range(40)]  # the surer half is right
    only = replace(found, facts=replace(found.facts, encoder=""))
    monkeypatch.setattr("edgetune.parts.home.understanding.ByDecoder.written",
                        lambda _, sentence: written[int(sentence)])
    facts = measured(only, rows, 1)
    assert (facts.right, facts.asked) == (20, 40)
    assert 1 - 20 / 100 < facts.limit <= 1 - 14 / 100  # 20 right ones are too few for nine tenths, and reach 0.85
    assert home == house(trained.parent)


@pytest.mark.dev
def test_a_changed_house_is_learned_by_both_again(tmp_path, trained):
    import shutil

    import yaml
    from houses import HOUSE
    shutil.copytree(trained, tmp_path / "house")
    entities = tmp_path / "changed.yaml"
    entities.write_text(yaml.safe_dump({**HOUSE, "entities": [*HOUSE["entities"], {"name": "Fan", "id": "fan.new"}]}))
    updated = update_house(tmp_path / "house", entities, threads=1)
    new = House.open(tmp_path / ("house" if updated.replaced else "house.new"))
    assert new.facts.models == House.open(trained).facts.models


def test_what_fits_no_house_is_refused(tmp_path, trained):
    found = House.open(trained)
    other = write_tiny(tmp_path / "other.gguf", formats="Q8_0", seed=7)
    with pytest.raises(MismatchError), decoder_of(replace(found, facts=replace(found.facts, decoder=str(other)))):
        pass
    facts = json.loads((trained / FACTS).read_text())
    (tmp_path / FACTS).write_text(json.dumps({**facts, "encoder": "", "decoder": ""}))
    with pytest.raises(FormatError, match="neither an encoder nor a decoder"):
        House.open(tmp_path)


@pytest.mark.parametrize(("wish", "why"), [
    (Wish("HassTurnOn", Target("Attic")), MISSING), (Wish("HassTurnOn"), WHICH),
    (Wish("HassLightSet", Target("Hall Lamp")), UNFINISHED)])
def test_what_cannot_be_is_no_call(tmp_path, wish, why):
    assert possible(wish, house(tmp_path)).why == why
