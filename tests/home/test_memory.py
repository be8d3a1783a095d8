"""A house is made within the memory that it is given."""

import gc

import pytest
from hassil import Intents
from houses import write_house
from peaks import peak_of

from edgetune.home.learning import draw_rows
from edgetune.home.recipe import Recipe


def test_templates_are_gone_when_the_rows_are_drawn(tmp_path):
    drawn = draw_rows(write_house(tmp_path), Recipe(count=200))
    gc.collect()
    assert drawn.learned
    assert not [one for one in gc.get_objects() if isinstance(one, Intents)]


@pytest.mark.slow
def test_a_house_takes_no_more_than_its_budget(tmp_path, encoder):
    command = ["home", "train", write_house(tmp_path), "-o", tmp_path / "house", "--count", 200, "--encoder", encoder,
               "--threads", 1]
    code, _, said = peak_of([*command, "--memory", "10M"])
    assert (code, (tmp_path / "house").exists()) == (2, False), said
    least = int(said.split("give it --memory ")[1].split("M")[0])
    code, peak, said = peak_of([*command, "--memory", f"{least}M"])
    assert code == 0, said
    assert peak <= least << 20, f"{peak / 2**20:.1f} MiB of {least}"
