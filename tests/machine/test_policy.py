"""Policies: from flags and files, refused outside their range, and made whole by what profile and kernel say."""


import pytest

from edgetune.errors import FormatError, UsageError
from edgetune.machine.device import profile_named
from edgetune.machine.policy import Policy, read_policy, resolve

pytestmark = pytest.mark.smoke

PI_5 = profile_named("Raspberry Pi 5")


@pytest.mark.parametrize(("options", "words"), [
    ({"max_temp": 300.0}, ("max-temp", "300", "120")), ({"nice": 20}, ("nice", "20", "19")),
    ({"min_battery": -1}, ("min-battery", "-1", "0")),
    ({"quiet_hours": "8-22"}, ("quiet-hours", "'8-22'", "08:00-22:00")),
    ({"quiet_hours": "08:00-24:00"}, ("quiet-hours", "24:00")), ({"quiet_hours": "08:00"}, ("quiet-hours",)),
    ({"quiet_hours": "08:00-08:00"}, ("quiet-hours", "different"))])
def test_refused(options, words):
    with pytest.raises(UsageError) as caught:
        Policy(**options).check()
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_file_and_flags_that_win(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text('# at home\nmax-temp = 70\nonly_on_power = true\nquiet-hours = "22:00-07:00"\n')
    assert read_policy(file) == Policy(max_temp=70.0, only_on_power=True, quiet_hours="22:00-07:00")
    assert read_policy(file, max_temp=65.0).max_temp == 65.0
    assert read_policy(file).quiet_minutes() == (1320, 420)


@pytest.mark.parametrize(("text", "error", "words"), [
    ("maxtemp = 70\n", UsageError, ("'maxtemp'", "max-temp")),
    ('max-temp = "70"\n', UsageError, ("max-temp", "'70'", "float")),
    ("only-on-power = 1\n", UsageError, ("only-on-power", "bool")), ("nice = 40\n", UsageError, ("nice is 40", "19")),
    ("nice\n", FormatError, ("line 1", "not TOML")), (None, FormatError, ("cannot read",))])
def test_a_bad_file(tmp_path, text, error, words):
    file = tmp_path / "policy.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error) as caught:
        read_policy(file)
    assert all(word in str(caught.value) for word in words), caught.value


def test_zeros_come_from_the_profile_and_the_kernel():
    gib = 2**30
    assert resolve(Policy(), PI_5, None, 8 * gib, True).max_temp == 80
    assert resolve(Policy(), PI_5, 75.0, 8 * gib, True).max_temp == 75
    assert resolve(Policy(max_temp=60.0), PI_5, 75.0, 8 * gib, True).max_temp == 60
    assert resolve(Policy(), None, None, 8 * gib, True).max_temp == 0
    assert resolve(Policy(), PI_5, None, 8 * gib, True).min_free == 128
    assert resolve(Policy(), PI_5, None, gib // 2, True).min_free == 64  # little is available
    assert resolve(Policy(), PI_5, None, None, True).min_free == 128
    assert resolve(Policy(min_free=300), PI_5, None, gib // 2, True).min_free == 300


def test_a_limit_that_could_not_be_kept_is_refused():
    with pytest.raises(UsageError, match="max-temp is 70, but this machine shows no temperature"):
        resolve(Policy(max_temp=70.0), PI_5, None, 0, False)
    with pytest.raises(UsageError, match="max-temp is 90, a Raspberry Pi 5 bears 85"):
        resolve(Policy(max_temp=90.0), PI_5, None, 0, True)
