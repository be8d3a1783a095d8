"""How many examples Hypothesis tries: a quarter in the suite, all of them with --hypothesis-profile thorough."""

from typing import Any

from hypothesis import HealthCheck, settings

PERCENT = {"quick": 25, "thorough": 100}  # of the examples that a test names; kept as max_examples of the profile
LEAST = 5
for name, percent in PERCENT.items():
    settings.register_profile(name, max_examples=percent, deadline=None)


def examples(count: int, **options: Any) -> settings:
    """For a test that tries `count` examples in the thorough profile. A model or folder may serve all of them."""
    number = max(min(LEAST, count), count * settings.default.max_examples // 100)
    given = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]} | options
    return settings(max_examples=number, **given)
