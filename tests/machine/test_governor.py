"""Decisions: traces of readings, made-up boards that change under it, and noise that must not make it flap."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from boards import MIB, Board
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import FormatError, UsageError
from edgetune.machine.device import profile_named, read_device
from edgetune.machine.governor import ACTIONS, Governor, GovernorState, decide
from edgetune.machine.policy import Policy, read_policy, resolve
from edgetune.machine.sensors import Readings

POLICY = Policy(max_temp=75.0, min_free=100)
FINE = Readings(minute=12 * 60, total=8000 * MIB, available=4000 * MIB, temperature=50.0, zone="cpu-thermal",
                processors=4, cpu_stall=0.0)

PI_5 = profile_named("Raspberry Pi 5")


def follow(trace, policy=POLICY, seconds=1.0):
    """The state after each reading of a trace, one every so many seconds."""
    state = GovernorState()
    states = []
    for i, r in enumerate(trace):
        state = decide(r, policy, state, i * seconds)
        states.append(state)
    return states


def after(seconds, **readings: object):
    """Action, rule and cause when readings have been so for a while."""
    state = follow([replace(FINE, **readings)] * seconds)[-1]
    return state.action, state.rule, state.cause


def test_nothing_to_give_way_to():
    assert after(100) == ("go", "", "")


@pytest.mark.parametrize(("readings", "action", "rule", "words"), [
    ({"temperature": 69.9}, "go", "", ""),
    ({"temperature": 70.0}, "slower", "heat", "cpu-thermal is at 70 °C, the limit is 75"),
    ({"temperature": 75.0}, "pause", "heat", "75 °C"),
    ({"available": 201 * MIB}, "go", "", ""),
    ({"available": 199 * MIB}, "slower", "memory", "199 MiB of memory are left, 100 MiB are kept free"),
    ({"available": 99 * MIB}, "pause", "memory", "99 MiB"),
    ({"total": 0, "available": 0}, "go", "", ""),  # a machine that does not say
    ({"memory_stall": 19.0}, "go", "", ""),
    ({"memory_stall": 20.0, "memory_stall_full": 5.0}, "slower", "memory", "wait for memory 20 % of the time"),
    ({"memory_stall": 80.0, "memory_stall_full": 60.0}, "pause", "memory", "wait for memory 80 %"),
    ({"killed": True}, "pause", "memory", "killed"),
    ({"on_battery": True, "battery": 60}, "go", "", ""),
    ({"on_battery": True, "battery": 19}, "pause", "power", "the battery is low, 19 % left"),
    ({"on_battery": False, "battery": 3}, "go", "", ""),
    ({"throttled": "the firmware caps the clock"}, "slower", "throttling", "the firmware caps the clock"),
    ({"temperature": 71.0, "power_mode": "25W"}, "slower", "heat", "the limit is 75, in power mode 25W"),
    ({"throttled": "the board slowed down for over-current", "power_mode": "MAXN"}, "slower", "throttling",
     "over-current, in power mode MAXN"),
    ({"gpu_load": 100.0}, "go", "", ""),  # whose it is, nobody says
    ({"foreground": True}, "pause", "foreground", "someone is being answered"),
    ({"others_busy": 2.5, "cpu_stall": 30.0}, "slower", "load", "other programs use 2.5 of 4 processors"),
    ({"others_busy": 2.5, "cpu_stall": None}, "slower", "load", "2.5"),
    ({"others_busy": 2.5, "cpu_stall": 1.0}, "go", "", ""),  # enough processors for all
    ({"others_busy": 1.0, "cpu_stall": 30.0}, "go", "", ""),
])
def test_a_rule(readings, action, rule, words):
    got = after(1, **readings)
    assert got[:2] == (action, rule)
    assert words in got[2]


@pytest.mark.parametrize(("hours", "minute", "quiet"), [
    ("08:00-22:00", 479, False), ("08:00-22:00", 480, True), ("08:00-22:00", 1319, True), ("08:00-22:00", 1320, False),
    ("22:00-07:30", 1320, True), ("22:00-07:30", 0, True), ("22:00-07:30", 449, True), ("22:00-07:30", 450, False)])
def test_quiet_hours(hours, minute, quiet):
    state = decide(replace(FINE, minute=minute), replace(POLICY, quiet_hours=hours), GovernorState(), 0)
    assert (state.action == "pause") == quiet
    if quiet:
        assert state.cause == f"it is {minute // 60:02}:{minute % 60:02}, in the quiet hours {hours}"


def test_only_on_power():
    policy = replace(POLICY, only_on_power=True)
    assert follow([replace(FINE, on_battery=True, battery=90)], policy)[0].cause == "running on battery, 90 % left"
    assert follow([FINE], policy)[0].action == "go"


def test_heat_is_left_later_than_entered():
    """In steps of 20 seconds: the limit is 75, slower from 70 on; each is left 5 degrees further down."""
    degrees = [50, 69, 70, 66, 65, 64.9, 71, 75, 71, 70, 69.9, 64.9, 50]
    wanted = ["go", "go", "slower", "slower", "slower", "go", "slower", "pause", "pause", "pause", "slower", "go", "go"]
    states = follow([replace(FINE, temperature=t) for t in degrees], seconds=20)
    assert [s.action for s in states] == wanted
    assert states[5].cause == "cooled down to 65 °C"


def test_memory_given_back_is_not_taken_for_free():
    """A paused process gave 500 MiB back. 560 MiB free are not enough to go on: they would be 60 again."""
    short = replace(FINE, available=60 * MIB)
    given = replace(FINE, available=560 * MIB, returned=500 * MIB)
    more = replace(given, available=700 * MIB)
    enough = replace(given, available=810 * MIB)
    states = follow([short, *[given] * 60, *[more] * 20, *[enough] * 20])
    assert {s.action for s in states[:61]} == {"pause"}
    assert states[80].action == "slower"  # 200 would be left
    assert (states[-1].action, states[-1].cause) == ("go", "810 MiB of memory are free again")


def test_the_strictest_rule_wins_and_a_cause_stays_among_equals():
    both = replace(FINE, temperature=72.0, throttled="the firmware throttles the cores")
    assert follow([both])[0].rule == "heat"
    states = follow([replace(both, temperature=50.0), *[both] * 30])
    assert {s.rule for s in states} == {"throttling"}
    states = follow([both] * 5 + [replace(both, on_battery=True, battery=5)] * 10)
    assert (states[-1].action, states[-1].rule) == ("pause", "power")


READINGS = st.builds(
    Readings, minute=st.integers(0, 1439), total=st.just(8000 * MIB),
    available=st.integers(0, 800).map(lambda n: n * MIB), returned=st.integers(0, 400).map(lambda n: n * MIB),
    memory_stall=st.floats(0, 100), memory_stall_full=st.floats(0, 100), cpu_stall=st.none() | st.floats(0, 100),
    killed=st.booleans(), temperature=st.none() | st.floats(20, 110),
    zone=st.just("cpu"), throttled=st.sampled_from(["", "", "the firmware caps the clock"]), on_battery=st.booleans(),
    battery=st.none() | st.integers(0, 100), processors=st.integers(1, 8), others_busy=st.floats(0, 8),
    foreground=st.booleans())
POLICIES = st.builds(Policy, max_temp=st.sampled_from([0.0, 60.0, 80.0]), min_free=st.integers(1, 400),
                     only_on_power=st.booleans(), quiet_hours=st.sampled_from(["", "08:00-22:00", "22:00-07:00"]))


@examples(40)
@given(st.lists(READINGS, min_size=1, max_size=60), POLICIES, st.sampled_from([0.3, 1.0, 3.0, 15.0]))
def test_no_trace_makes_it_flap(trace, policy, seconds):
    states = follow(trace, policy, seconds)
    changes = [b for a, b in pairwise([GovernorState(), *states]) if (a.action, a.rule) != (b.action, b.rule)]
    assert all(b.since - a.since >= 10 for a, b in pairwise(changes))
    for state in states:
        assert state.action in ACTIONS
        assert state.action == "go" or (state.rule and state.cause)


@examples(40)
@given(READINGS, st.lists(READINGS, max_size=20), POLICIES)
def test_what_lasts_is_obeyed_and_then_nothing_changes(last, before, policy):
    states = follow([*before, *[last] * 40], policy)
    assert len({(s.action, s.rule) for s in states[-10:]}) == 1
    if last.foreground or (last.on_battery and policy.only_on_power):
        assert states[-1].action == "pause"


@pytest.mark.parametrize("edge", [70.0, 75.0])
def test_noise_around_a_limit(edge):
    """Ten minutes of a temperature that jumps by 4 degrees around a limit: one change, not sixty."""
    noise = random.Random(0)
    states = follow([FINE] + [replace(FINE, temperature=edge + noise.uniform(-2, 2)) for _ in range(600)])
    changes = [(a.action, b.action) for a, b in pairwise(states) if a.action != b.action]
    assert len(changes) <= 2
    assert ("slower", "go") not in changes


class Watched:
    """A governor on a made-up board, with a clock that the test turns; notes its changes."""

    def __init__(self, root, **options: object):
        self.board = Board(root)
        self.now = 0.0
        self.changes = list[tuple[str, str]]()
        profile = read_device(root).profile
        self.governor = Governor(Policy(**options), profile, root, clock=lambda: self.now,
                                 local=lambda: time.gmtime(self.now))

    def wait(self, seconds, **load: float):
        for _ in range(seconds):
            self.now += 1
            self.board.tick(**load)
            if self.governor.look():
                self.changes.append((self.governor.state.action, self.governor.state.rule))
        return self.governor.state.action


def test_a_day_of_a_raspberry_pi(tmp_path):
    """Heat rises, throttling sets in, memory vanishes, power goes, someone else computes; each time it recovers."""
    w = Watched(tmp_path, only_on_power=True)
    assert w.governor.policy.max_temp == 80  # the profile's
    assert w.wait(30, own=4.0) == "go"
    for degrees in (60, 70, 76, 78):
        w.board.heat(degrees)
        w.wait(20, own=4.0)
    assert w.governor.state.cause == "cpu-thermal is at 78 °C, the limit is 80"
    w.board.heat(81)
    w.board.throttle(0x60004)
    assert w.wait(20) == "pause"
    w.board.heat(73)
    assert w.wait(20) == "slower"
    w.board.heat(60)
    assert w.wait(20) == "slower"  # the firmware still throttles
    assert w.governor.state.rule == "throttling"
    w.board.throttle(0x60000)
    assert w.wait(20) == "go"
    w.board.memory(200)
    w.wait(20)
    w.board.memory(90)
    assert w.wait(20) == "pause"
    w.board.memory(6000)
    assert w.wait(20) == "go"
    w.board.power(online=False, percent=70)
    assert w.wait(20) == "pause"
    w.board.power(online=True, percent=71)
    assert w.wait(20) == "go"
    w.board.pressure(cpu=40.0)
    assert w.wait(30, own=1.0, others=3.0) == "slower"
    assert w.wait(30, own=4.0) == "go"
    assert w.changes == [
        ("slower", "heat"), ("pause", "heat"), ("slower", "heat"), ("slower", "throttling"), ("go", ""),
        ("slower", "memory"), ("pause", "memory"), ("go", ""), ("pause", "power"), ("go", ""), ("slower", "load"),
        ("go", "")]


def test_it_looks_once_a_second_at_most(tmp_path):
    w = Watched(tmp_path)
    w.board.heat(90)
    assert w.governor.look()
    w.board.heat(20)
    for i in range(9):
        w.now = 0.1 * i
        w.governor.look()
        assert w.governor.readings.temperature == 90
    w.now = 1.0
    w.governor.look()
    assert w.governor.readings.temperature == 20


def test_a_run_does_not_wait_for_memory_that_it_takes_itself(tmp_path):
    """1200 MiB are available, the run takes 1000: what is left is less than the reserve of twice 128."""
    w = Watched(tmp_path)
    w.board.memory(1200)
    governor = Governor(Policy(), read_device(tmp_path).profile, tmp_path, clock=lambda: w.now)
    assert governor.policy.min_free == 128
    governor.expect(1000 * MIB)
    assert governor.policy.min_free == 50
    w.board.memory(200)
    assert not governor.look()
    assert governor.state.action == "go"
    asked = Governor(Policy(min_free=300), read_device(tmp_path).profile, tmp_path)
    with pytest.raises(UsageError, match="min-free is 300, but this run leaves 150 MiB"):
        asked.expect(50 * MIB)


def test_memory_is_wanted_back_at_once(tmp_path):
    """Ten seconds must pass between two changes, but not before memory is given back."""
    w = Watched(tmp_path)
    w.board.heat(77)
    assert w.wait(1) == "slower"
    assert not w.governor.short_of_memory
    w.board.memory(20)
    assert w.wait(1) == "slower"
    assert w.governor.short_of_memory


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
