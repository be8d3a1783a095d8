"""A house is made within the memory that it is given."""

import gc

import pytest
from hassil import Intents
from houses import write_house
from peaks import peak_of
from tiny import write_tiny

from edgetune.errors import BudgetError
from edgetune.parts.home.house import House
from edgetune.parts.home.learning import draw_rows, make_house
from edgetune.parts.home.recipe import Recipe
from edgetune.parts.home.understanding import ByEncoder, understanding_of
from edgetune.parts.home.updating import Change, compared


def number_of(kind):
    """Objects in memory."""
    gc.collect()
    return sum(isinstance(one, kind) for one in gc.get_objects())


@pytest.mark.dev
def test_templates_are_gone_when_the_rows_are_drawn(tmp_path):
    before = number_of(Intents)  # of other tests
    drawn = draw_rows(write_house(tmp_path), Recipe(count=200))
    assert drawn.learned
    assert number_of(Intents) == before


@pytest.mark.dev
def test_of_two_houses_that_are_compared_one_is_open_at_a_time(trained, monkeypatch):
    found = House.open(trained[0])
    are_open = []

    def opened(*given):
        are_open.append(number_of(ByEncoder))
        return understanding_of(*given)

    monkeypatch.setattr("edgetune.parts.home.updating.understanding_of", opened)
    compared(found, found, Change((), (), (), tuple(one.name for one in found.home.entities)), threads=1)
    first, second = are_open
    assert second == first


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "decoder", "both"])
def test_a_house_takes_no_more_than_its_budget(tmp_path, encoder, kind):
    decoder = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    out = tmp_path / "house"
    command = ["home", "train", write_house(tmp_path), "-o", out, "--count", 200, "--with", kind, "--encoder", encoder,
               "--decoder", decoder, "--threads", 1]
    code, _, said = peak_of([*command, "--memory", "10M"])
    assert (code, out.exists()) == (2, False), said
    least = int(said.split("give it --memory ")[1].split("M")[0])
    code, peak, said = peak_of([*command, "--memory", f"{least}M"])
    assert code == 0, said
    assert peak <= least << 20, f"{peak / 2**20:.1f} MiB of {least}"


def test_a_house_that_cannot_be_asked_is_not_trained(tmp_path):
    """Its training could read the weights at every use, and its answers cannot."""
    decoder = write_tiny(tmp_path / "tiny.gguf", formats="Q8_0")
    with pytest.raises(BudgetError, match=r"asking a house .* the budget is 1 MiB \(--memory 1M\); give it --memory"):
        make_house(write_house(tmp_path), tmp_path / "house", Recipe(count=200, with_="decoder", decoder=str(decoder)),
                   memory="1M")
    assert not (tmp_path / "house").exists()
