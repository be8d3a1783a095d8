"""edgetune.parts.fleet.rollout.rings: what holds for every roll-out, whatever devices report and when."""

from dataclasses import replace
from itertools import pairwise

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from edgetune.errors import UsageError
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.rings import RingPlan, RingReport, begin, counts

PASSED = RingReport(rings.CLOSED, rings.SUCCESS)
FAILED = RingReport(rings.CLOSED, rings.FAILURE)
REFUSED = RingReport(rings.REJECTED)
OPEN = RingReport(rings.PROCEEDING)
SILENT = RingReport()
GONE = RingReport(rings.CANCELED, rings.SUCCESS)
HOUR = 3600
PLAN = RingPlan(wait=24 * HOUR)


def advance(state, reports, now):
    """The state at a time by a clock that is right."""
    return rings.advance(state, reports, now, now - state.since)


def fleet(count):
    return [f"device{i}" for i in range(count)]


def rolled(plan, devices, says, hours=300, state=None):
    """Every state of a roll-out whose devices say, once their ring has begun, what `says` has of them."""
    state = state or begin(plan, devices, 0, "seed")
    states = [state]
    for hour in range(1, hours):
        reports = {name: says(name, states) for name in devices if state.action(name)}
        state = advance(state, reports, hour * HOUR)
        states.append(state)
    return states


plans = st.builds(RingPlan, st.sampled_from([("1", "10%", "all"), ("all",), ("2", "50%"), ("10%", "30%", "100%")]),
                  st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.sampled_from([0.0, 0.02, 0.3]),
                  st.sampled_from([0.0, 0.5, 1.0]), st.just(24 * HOUR))
says = st.sampled_from([PASSED, FAILED, REFUSED, OPEN, SILENT])


@examples(200)
@given(plans, st.dictionaries(st.sampled_from(fleet(60)), says, min_size=1), st.data())
def test_every_rollout(plan, fate, data):
    devices = [*fate]
    states = rolled(plan, devices, lambda name, _: fate[name], 200)
    for before, after in pairwise(states):
        assert after.ring - before.ring in (0, 1)
        assert after.rings == before.rings
        assert (before.status, after.status) in {
            (rings.RUNNING, rings.RUNNING), (rings.RUNNING, rings.PAUSED), (rings.RUNNING, rings.STOPPED),
            (rings.RUNNING, rings.FINISHED), *((end, end) for end in rings.STATUSES)}
        if after.ring > before.ring:  # only a ring that met all three limits is left
            found = counts(before.rings[before.ring], fate)
            assert found.failed <= plan.error * max(found.reported, min(found.devices, 1 / (plan.error or 1)) + 1)
            assert found.outcomes >= plan.quorum * found.devices
            assert found.succeeded >= plan.success * found.outcomes
    last = states[-1]
    assert last.status != rings.RUNNING  # devices that say nothing do not hold it up for ever
    untouched = set(devices) - set(last.begun)
    assert all(not state.action(name) for state in states for name in untouched)
    assert sorted(name for ring in last.rings for name in ring) == sorted(
        set(devices) if plan.rings[-1] != "50%" else {name for ring in last.rings for name in ring})
    if last.status == rings.STOPPED:
        assert counts(last.rings[last.ring], fate).failed or any(counts(ring, fate).failed for ring in last.rings)
        assert not any(last.action(name) for name in devices)
    # undone: every device that has it is asked, and nothing else ends it
    undone = rings.undo(last)
    have = {name for name in last.begun if fate[name] in (PASSED, OPEN)}
    gone = set(data.draw(st.lists(st.sampled_from(sorted(have)), unique=True))) if have else set()
    after = advance(undone, {name: GONE if name in gone else fate[name] for name in devices}, 10**9)
    assert (after.status == rings.UNDONE) == (gone == have)
    assert {name for name in devices if after.action(name) == rings.CANCEL} == set(last.begun)


@examples(100)
@given(plans, st.dictionaries(st.sampled_from(fleet(40)), says, min_size=1), st.integers(1, 40))
def test_a_second_look_at_the_same_reports_changes_nothing(plan, fate, hour):
    state = begin(plan, [*fate], 0, "seed")
    first = {name: report for name, report in fate.items() if state.action(name)}
    once = advance(state, first, hour * HOUR)
    again = advance(once, first, hour * HOUR)
    assert again == once


def test_all_is_well():
    states = rolled(PLAN, fleet(50), lambda *_: PASSED)
    assert [len(ring) for ring in states[0].rings] == [1, 4, 45]
    assert [(state.ring, state.status) for state in states[:5]] == [
        (0, rings.RUNNING), (1, rings.RUNNING), (2, rings.RUNNING), (2, rings.FINISHED), (2, rings.FINISHED)]


@pytest.mark.parametrize(("says", "status", "reason"), [
    (FAILED, rings.STOPPED, "1 of 1 devices of ring 1 that reported have failed, 2% are allowed"),
    (REFUSED, rings.PAUSED, "1 of 1 devices of ring 1 of 3 refused it or failed, 5% may"),
    (SILENT, rings.PAUSED, "0 of 1 devices of ring 1 of 3 have an outcome, 50% are needed"),
    (OPEN, rings.PAUSED, "0 of 1 devices of ring 1 of 3 have an outcome, 50% are needed")])
def test_what_is_bad_for_all_reaches_one_device(says, status, reason):
    last = rolled(PLAN, fleet(50), lambda *_: says)[-1]
    assert (last.ring, last.status, last.reason) == (0, status, reason)
    assert len(last.begun) == 1


def test_what_a_fifth_refuses_pauses_before_the_ring_ends():
    devices = fleet(50)
    first = begin(PLAN, devices, 0, "seed").rings
    bad = {name for name in devices[::5] if name not in (*first[0], *first[1])}

    def says(name, states):
        if name not in first[2]:
            return PASSED
        waited = len([state for state in states if state.ring == 2])
        return (REFUSED if name in bad else PASSED) if first[2].index(name) < 5 * waited else OPEN

    last = rolled(PLAN, devices, says)[-1]
    assert (last.ring, last.status) == (2, rings.PAUSED)
    assert last.since + 24 * HOUR > HOUR * 12  # long before its devices' time was over
    reports = {name: REFUSED if name in bad else PASSED for name in last.begun}
    assert rings.resume(last, reports, 0, 0).status == rings.FINISHED


def test_one_early_failure_of_a_large_ring_does_not_stop_it():
    """The second does: 2 of the least that is counted with, 50."""
    devices = fleet(1000)
    state = replace(begin(PLAN, devices, 0, "seed"), ring=2)
    ring = state.rings[2]
    assert advance(state, {ring[0]: FAILED}, HOUR) == state
    stopped = advance(state, dict.fromkeys(ring[:2], FAILED), HOUR)
    assert stopped.status == rings.STOPPED
    many = dict.fromkeys(ring[:200], PASSED)
    assert advance(state, {**many, ring[201]: FAILED, ring[202]: FAILED, ring[203]: FAILED, ring[204]: FAILED},
                   HOUR) == state  # 4 of 204


def test_the_share_of_successes_that_is_required_suffices():
    devices = fleet(20)
    state = begin(RingPlan(("all",)), devices, 0, "seed")
    reports = {**dict.fromkeys(devices, PASSED), devices[0]: REFUSED}
    assert advance(state, reports, HOUR).status == rings.FINISHED
    assert advance(state, {**reports, devices[1]: REFUSED}, HOUR).status == rings.PAUSED


def test_devices_that_vanish_count_for_nothing():
    devices = fleet(50)
    state = begin(PLAN, devices, 0, "seed")
    gone = {*state.rings[1][:1], *state.rings[2][:20]}
    states = rolled(PLAN, devices, lambda name, _: SILENT if name in gone else PASSED)
    assert (states[-1].ring, states[-1].status) == (2, rings.FINISHED)
    assert [state.ring for state in states].count(1) == 24  # as long as it waits
    late = advance(states[-1], dict.fromkeys(gone, FAILED), 10**6)  # they come back, and it was bad for them
    assert late.status == rings.STOPPED


def test_a_person_decides():
    paused = rolled(PLAN, fleet(50), lambda *_: REFUSED)[-1]
    resumed = rings.resume(paused, dict.fromkeys(paused.begun, REFUSED), 77, 0)
    assert (resumed.ring, resumed.status, resumed.since) == (1, rings.RUNNING, 77)
    stopped = rings.stop(resumed)
    assert not any(stopped.action(name) for name in stopped.begun)
    for wrong in (rings.PAUSE, rings.RESUME, rings.STOP):
        with pytest.raises(UsageError, match="the roll-out is stopped"):
            rings.changed(stopped, wrong, {}, 0, 0)
    with pytest.raises(UsageError, match="the roll-out is undoing"):
        rings.undo(rings.undo(stopped))


def test_a_person_pauses_and_the_same_ring_continues():
    begun = begin(PLAN, fleet(50), 0, "seed")
    paused = rings.pause(begun)
    first = dict.fromkeys(paused.begun, PASSED)
    assert advance(paused, first, HOUR) == paused  # no ring begins
    assert paused.action(paused.begun[0]) == rings.DEPLOY
    resumed = rings.resume(paused, {}, HOUR, HOUR)
    assert (resumed.ring, resumed.status, resumed.since) == (0, rings.RUNNING, 0)
    assert advance(resumed, first, HOUR).ring == 1
    refused = advance(paused, dict.fromkeys(paused.begun, REFUSED), HOUR)
    assert refused.status == rings.PAUSED
    assert refused.reason == "1 of 1 devices of ring 1 of 3 refused it or failed, 5% may"
    assert advance(paused, dict.fromkeys(paused.begun, FAILED), HOUR).status == rings.STOPPED


def test_the_changes_that_are_offered_are_those_that_work():
    begun = begin(PLAN, fleet(50), 0, "seed")
    for status in rings.STATUSES:
        state = replace(begun, status=status)
        assert rings.changed(state, rings.ADVANCE, {}, 0, 0) == state  # it is always harmless
        for change in rings.CHANGES[:-1]:
            if change in rings.changes(state):
                rings.changed(state, change, {}, 0, 0)
            else:
                with pytest.raises(UsageError, match=f"the roll-out is {status}"):
                    rings.changed(state, change, {}, 0, 0)


def test_devices_that_come_later_and_first():
    state = begin(PLAN, fleet(20), 0, "seed", first=["device7", "device3"])
    assert [state.rings[0], len(state.rings[1])] == [("device7",), 1]
    assert state.rings[1] == ("device3",)
    joined = rings.join(state, [*fleet(20), "new"])
    assert joined.rings[-1][-1] == "new"
    assert rings.join(joined, [*fleet(20), "new"]) == joined
    half = begin(RingPlan(("1", "50%")), fleet(20), 0, "seed")
    assert rings.join(half, ["new"]) == half
    assert begin(PLAN, fleet(20), 0, "seed").rings != begin(PLAN, fleet(20), 0, "other").rings


@pytest.mark.parametrize(("plan", "words"), [
    ({"rings": ("1", "ten")}, "ten"), ({"rings": ("10%", "5%")}, "no more devices"), ({"rings": ("5", "2")}, "no more"),
    ({"rings": ()}, "names none"), ({"rings": ("0",)}, "'0'"), ({"rings": ("0%", "all")}, "'0%'"),
    ({"success": 95}, "success is 95"), ({"error": -0.1}, "error"), ({"wait": 0}, "wait is 0"),
    ({"rings": ("101%",)}, "101%")])
def test_a_wrong_plan_says_so(plan, words):
    with pytest.raises(UsageError, match=words):
        begin(RingPlan(**plan), fleet(3), 0, "seed")


def test_no_devices():
    with pytest.raises(UsageError, match="no device has reported"):
        begin(PLAN, [], 0, "seed")
    with pytest.raises(UsageError, match="no device is called 'x'"):
        begin(PLAN, fleet(2), 0, "seed", ["x"])
    with pytest.raises(UsageError, match="'done'"):
        RingReport("done").check("x.json")
    assert [len(ring) for ring in begin(PLAN, fleet(5), 0, "seed").rings] == [1, 4]
