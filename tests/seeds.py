"""The seed of trainings in tests: EDGETUNE_TEST_SEED is the default of TrainConfig where it is set.

`make lab NAME=learning` runs the tests that are marked so with several. What is learned has to hold with each of them.
"""

import os

VARIABLE = "EDGETUNE_TEST_SEED"


def take_seed() -> None:
    """Changes the default, also of programs' flags, which are made from it."""
    if seed := int(os.environ.get(VARIABLE, "0")):
        from edgetune.training.config import CommonOptions

        CommonOptions.__dataclass_fields__["seed"].default = seed
        CommonOptions.seed = seed
        names = [name for name, field in CommonOptions.__dataclass_fields__.items() if field.init]
        defaults = list(CommonOptions.__init__.__defaults__ or ())
        defaults[names.index("seed") - len(names)] = seed
        CommonOptions.__init__.__defaults__ = tuple(defaults)
