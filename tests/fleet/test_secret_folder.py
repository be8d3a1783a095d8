"""Rounds that are summed in secret, carried by a folder: the lead and the devices, each looking by itself."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from commands import run
from secret_fleets import CALLS, CONFIG, DEVICES, OPTIONS, Fleet, changed, check_sum, learn

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgetune.errors import FormatError, MismatchError, UsageError
from edgetune.fleet.carriers.folder import Lead
from edgetune.fleet.carriers.places import Place, newest
from edgetune.fleet.joining.cards import cards_of, publish
from edgetune.fleet.options import FleetOptions
from edgetune.fleet.rounds.history import history_of
from edgetune.fleet.rounds.making import make_task
from edgetune.fleet.rounds.task import Secret, open_task
from edgetune.fleet.secret.cards import Card, check_known, make_card, read_peers
from edgetune.fleet.secret.files import open_request
from edgetune.fleet.secret.key import make_key
from edgetune.fleet.secret.round import circle_of


@pytest.fixture(scope="module")
def learned(bundle, tmp_path_factory):
    return learn(bundle, tmp_path_factory.mktemp("learned"))


@pytest.fixture
def fleet(bundle, learned, tmp_path):
    return Fleet(bundle, learned[1], tmp_path)


def test_all_answer_and_the_sum_is_that_of_open_answers(fleet, learned, bundle):
    fleet.begin()
    fleet.answer("abc")
    assert fleet.lead().end_round() is None
    assert not newest(fleet.folder).is_requested  # one more is waited for
    fleet.answer("d")
    assert fleet.lead().end_round() is None
    assert newest(fleet.folder).is_requested
    fleet.reveal("ab")
    assert fleet.lead().end_round() is None
    fleet.reveal("d")
    ended = fleet.lead().end_round()
    assert (ended.record.devices, ended.dropped, ended.left_out) == (4, "", [])
    assert ended.record.tokens == sum(tokens for _, tokens in learned[0].values())
    check_sum(fleet.folder, fleet.bundle, learned[0], "abcd")
    part = fleet.members["c"].answer(CALLS)  # it was not needed
    assert (part.place.number, part.facts, part.is_over) == (1, None, True)
    assert open_task(newest(fleet.folder).task, bundle).secret == open_task(Place(fleet.folder, 1).task, bundle).secret
    assert "round 1 is summed with b, which is new to this device, not signed" in fleet.said["a"]
    assert not any(b"say" in path.read_bytes() for path in fleet.folder.rglob("*") if path.is_file())


def test_a_device_that_drops_out_before_its_answer_and_one_after(fleet, learned):
    """With a threshold of 3 of 4 one may be missing at a time: first before its answer, in the next round after it."""
    fleet.begin()
    fleet.answer("abd")
    assert fleet.lead().end_round() is None
    assert fleet.lead(seconds=0.0).end_round() is None  # the time is over: a request is made
    assert fleet.members["c"].answer(CALLS) is None  # its answer would be too late, so that it does not train
    fleet.reveal("abd")
    assert fleet.lead().end_round().record.devices == 3
    check_sum(fleet.folder, fleet.bundle, learned[0], "abd")
    for name in DEVICES:
        assert fleet.members[name].answer(CALLS).place.number == 2
    assert fleet.lead().end_round() is None
    for name in "bcd":
        assert fleet.members[name].answer(CALLS).is_over
    ended = fleet.lead().end_round()
    assert (ended.record.round, ended.record.devices) == (2, 4)


def test_a_device_that_drops_out_before_and_one_after_in_one_round(bundle, learned, tmp_path):
    """Of five devices, the last of which nobody has: it is in the round, and so four are left for a threshold of 3."""
    fleet = Fleet(bundle, learned[1], tmp_path)
    for member in fleet.members.values():
        with pytest.raises(FormatError):
            member.answer(CALLS)
    fleet.members.pop("c")
    secret = Secret.of(cards_of(fleet.folder)[0], 3)
    make_task(bundle, fleet.folder / "round-0001" / "task", CONFIG, OPTIONS, secret=secret)
    fleet.answer("abd")
    fleet.lead(seconds=0.0).end_round()
    fleet.reveal("ab")
    assert fleet.lead().end_round() is None
    ended = fleet.lead(seconds=0.0).end_round()  # d does not reveal, and 3 must
    assert ended.dropped == "2 devices have revealed their shares, and 3 must"
    assert (ended.record.devices, ended.record.tokens) == (0, 0)
    first, second = (Place(fleet.folder, number).task / "adapter" / "adapter.gguf" for number in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    refused = history_of(fleet.folder).outcomes[0].left_out
    assert refused == [{"device": "all devices", "reason": f"the round was dropped: {ended.dropped}"}]


def test_too_few_answers_drop_the_round(fleet):
    fleet.begin()
    fleet.answer("ab")
    assert fleet.lead(seconds=1e9).end_round() is None
    ended = fleet.lead(seconds=0.0).end_round()
    assert ended.dropped == "2 devices have answered, and 3 must"
    part = fleet.members["a"].answer(CALLS)
    assert (part.place.number, part.facts, part.is_over) == (1, None, True)
    assert fleet.members["a"].answer(CALLS).place.number == 2


def test_the_time_of_a_lead_that_was_killed_counts(fleet):
    fleet.begin()
    fleet.answer("abc")
    assert fleet.lead().end_round() is None
    clock = Place(fleet.folder, 1).folder / "round-0001" / "lead.json"
    noted = json.loads(clock.read_text())
    clock.write_text(json.dumps({**noted, "answers": noted["answers"] - 100}))
    assert fleet.lead(seconds=200).end_round() is None
    assert not newest(fleet.folder).is_requested
    fleet.lead(seconds=100).end_round()
    assert newest(fleet.folder).is_requested


def test_lying_devices(fleet, learned):
    """One that reveals wrong shares is found and named. One that answers as another, and one whose vector is none that
    a device can have, spoil nothing, or the round alone.
    """
    fleet.begin()
    fleet.answer("abcd")
    place = newest(fleet.folder)
    shutil.copytree(place.answers / "b", place.answers / "x")
    fleet.lead().end_round()
    fleet.reveal("abcd")
    changed(place.revealed / "d", "revealed", own=lambda own: own ^ 1)
    ended = fleet.lead().end_round()
    assert ended.record.devices == 4
    assert {one.device: one.reason for one in ended.left_out} == {
        "x": "x is of b".replace("x is", f"{place.answers / 'x'} is"), "d": "it revealed shares that it was not dealt"}
    check_sum(fleet.folder, fleet.bundle, learned[0], "abcd")


def test_a_device_that_deals_wrong_shares_and_a_vector_that_is_none(fleet):
    fleet.begin()
    fleet.answer("abcd")
    place = newest(fleet.folder)
    changed(place.answers / "d", "masked", digests=lambda digests: digests ^ 1)
    fleet.lead().end_round()
    fleet.reveal("abc")
    assert fleet.lead().end_round() is None  # d may still reveal
    fleet.reveal("d")
    ended = fleet.lead().end_round()
    assert ended.dropped == "0 devices have revealed right shares of d, and 3 must"
    for name in DEVICES:
        assert fleet.members[name].answer(CALLS).place.number == 2
    changed(newest(fleet.folder).answers / "d", "masked", words=lambda words: np.append(
            words[:-1] + np.uint32(2**30), words[-1:]))
    fleet.lead().end_round()
    fleet.reveal("abc")
    assert "one has sent something else" in fleet.lead().end_round().dropped


def test_a_lead_that_asks_twice_or_lies(fleet, tmp_path):
    """A device reveals for one request a round, says so once, and goes on with the next round."""
    fleet.begin()
    fleet.answer("abcd")
    place = newest(fleet.folder)
    fleet.lead(devices=3).end_round()
    fleet.reveal("a")
    shutil.rmtree(place.revealed / "a")
    changed(place.request, "request", sealed=lambda sealed: sealed ^ 1)
    again = fleet.member("a", {name: member.rows for name, member in fleet.members.items()}, tmp_path, None)
    with pytest.raises(FormatError, match=r"has revealed its shares of the round .* for another request"):
        again.answer(CALLS)
    assert again.answer(CALLS) is None


def test_devices_that_sign_and_strangers(bundle, learned, tmp_path):
    """Where cards are signed, so must be the answers, by the same key. A card that was changed does not count."""
    fleet = Fleet(bundle, learned[1], tmp_path, signing=DEVICES)
    fleet.begin()
    assert "signed by a key that begins with" in fleet.said["a"][0]
    cards = {card.device: card for card in cards_of(fleet.folder)[0]}
    fleet.answer("abcd")
    place = newest(fleet.folder)
    (place.answers / "d" / "manifest.sig").unlink()
    fleet.lead(seconds=0.0).end_round()
    circle = circle_of(task := open_task(place.task, bundle))
    assert [circle.names[number] for number in open_request(place.request, task, circle).answered] == [
        name for name in circle.names if name != "d"]
    path = fleet.folder / "keys" / "d.json"
    wrong = {**json.loads(path.read_text()), "secret": cards["a"].secret}
    path.write_text(json.dumps(wrong))
    found, against = cards_of(fleet.folder)
    assert len(found) == 3
    assert "is not signed by that device" in against["d"]
    fleet.reveal("abc")
    assert fleet.lead().end_round().record.devices == 3
    following = open_task(newest(fleet.folder).task, bundle).secret
    assert sorted(card.device for card in following.named()) == ["a", "b", "c"]
    assert following.threshold == 3


def test_a_device_answers_no_round_with_too_few_devices_that_it_knows(bundle, learned, tmp_path):
    fleet = Fleet(bundle, learned[1], tmp_path, signing=DEVICES)
    fleet.begin()
    cards = {card.device: card.key for card in cards_of(fleet.folder)[0]}
    peers = tmp_path / "peers.txt"
    peers.write_text(f"# mine\n{cards['b'][:4]} {cards['b'][4:16]}\n")
    one = fleet.member("a", learned[1], tmp_path, tmp_path / "a.sign", peers)
    with pytest.raises(FormatError, match=r"2 of the 4 devices of the round are this one and those in .*, and 3 must"):
        one.answer(CALLS)
    assert one.answer(CALLS) is None
    peers.write_text(f"{cards['b']}\n{cards['c']}  # the shed\n")
    again = fleet.member("a", learned[1], tmp_path, tmp_path / "a.sign", peers)
    assert again.answer(CALLS).facts
    peers.write_text("abc\n")
    with pytest.raises(UsageError, match=r"line 1 of .* is no key"):
        read_peers(peers)


@pytest.mark.parametrize("devices", range(2, 12))
def test_known_devices_are_so_many_that_a_lying_lead_learns_nothing(devices, tmp_path):
    """Against every split of the known devices by a lead with all unknown ones: it needs the threshold twice."""
    cards = [Card(f"d{i}", f"{i:064x}", f"{i:064x}", "0" * 128) for i in range(devices)]
    for threshold in range(devices // 2 + 1, devices + 1):
        for known in range(1, devices + 1):
            peers = [card.key for card in cards[1:known]]
            unknown = devices - known
            honest = known  # a device reveals for one list; the unknown ones for both
            is_safe = 2 * threshold > honest + 2 * unknown and known >= 2
            if is_safe:
                check_known(cards, 0, threshold, peers, tmp_path)
            else:
                with pytest.raises(MismatchError):
                    check_known(cards, 0, threshold, peers, tmp_path)


def test_a_device_that_must_be_summed_in_secret_answers_no_open_task(bundle, learned, tmp_path):
    fleet = Fleet(bundle, learned[1], tmp_path)
    make_task(bundle, fleet.folder / "round-0001" / "task", CONFIG, OPTIONS)
    with pytest.raises(FormatError, match="is not summed in secret, and --secret is given"):
        fleet.members["a"].answer(CALLS)
    assert fleet.members["a"].answer(CALLS) is None
    make_key(tmp_path / "stranger.key")
    strangers = [Card(f"x{i}", make_key(tmp_path / f"x{i}")) for i in range(3)]
    make_task(bundle, fleet.folder / "round-0002" / "task", CONFIG, OPTIONS, secret=Secret.of(strangers, None))
    with pytest.raises(FormatError, match="this device is not among those of the round"):
        fleet.members["a"].answer(CALLS)
    assert fleet.members["a"].answer(CALLS) is None


def test_a_card_is_of_one_device_and_one_key():
    key = Ed25519PrivateKey.generate()
    card = make_card("kitchen", "1" * 64, key)
    assert card.check("x") == card
    for wrong in (Card("shed", card.secret, card.key, card.signature), Card(card.device, "2" * 64, card.key,
                                                                           card.signature)):
        with pytest.raises(MismatchError, match="is not signed by that device"):
            wrong.check("x")
    for none in (Card("../x", card.secret), Card("a", "1"), Card("a", card.secret, card.key), Card(
            "a", card.secret, "", card.signature)):
        with pytest.raises(FormatError):
            none.check("x")


class Killed(BaseException):
    pass


def test_what_is_killed_at_any_step_is_done_again(fleet, learned, tmp_path, monkeypatch):
    """The lead and the devices are killed at each rename, once before and once after it, and begin again with nothing
    but their files.
    """
    fleet.begin()
    rename = Path.rename
    counts = {}

    def killed(self, target):
        name = str(target)
        counts[name] = counts.get(name, 0) + 1
        if counts[name] == 1:
            raise Killed
        found = rename(self, target)
        if counts[name] == 2 and str(target).startswith(str(fleet.folder)):
            raise Killed
        return found

    rows = {name: member.rows for name, member in fleet.members.items()}
    monkeypatch.setattr(Path, "rename", killed)
    for _ in range(12):
        for name in DEVICES:
            with suppress(Killed):
                fleet.member(name, rows, tmp_path, None).answer(CALLS)
        with suppress(Killed):
            fleet.lead().end_round()
        if newest(fleet.folder).number == 2:
            break
    monkeypatch.undo()
    assert {Path(name).name for name in counts} >= {"request", "task", *DEVICES}
    check_sum(fleet.folder, fleet.bundle, learned[0], "abcd")


def test_halves_take_turns_over_rounds_that_were_dropped(bundle, tmp_path):
    """With A and B in turn, a dropped round is repeated: A alone learns nothing while B is zero."""
    cards = [Card(f"x{i}", make_key(tmp_path / f"x{i}")) for i in range(3)]
    make_task(bundle, tmp_path / "round-0001" / "task", CONFIG, FleetOptions(aggregation="rolora"),
              secret=Secret.of(cards, None))
    (tmp_path / "keys").mkdir()
    for card in cards:
        publish(tmp_path, card)
    halves = []
    for _ in range(2):
        task = open_task(newest(tmp_path).task, bundle)
        halves.append((task.half, task.config.family.name))
        assert Lead(tmp_path, bundle, None, 0.0, None).end_round().dropped
    assert halves[0] == halves[1]
    assert halves[0][0] == "b"


def test_the_commands(bundle, learned, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "shared"
    folder.mkdir()
    model = ("--model", bundle.path)
    text = run("fleet", "task", bundle.path, "-o", folder / "round-0001" / "task", "--aggregation", "frozen-a",
               "--secret", folder, code=2)
    assert "no device has published its key" in text
    assert "there is no key" in run("fleet", "follow", folder, learned[1]["a"], *model, "--secret", tmp_path / "no",
                                    code=2)
    assert "--peers is given without a key" in run("fleet", "follow", folder, learned[1]["a"], *model, "--peers",
                                                   tmp_path / "no", code=2)
