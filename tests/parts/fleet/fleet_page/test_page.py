"""The fleet on the page: seen, and decided by real clicks. What a click does is read back from the folder."""

import re
import shutil
import time

import pytest
from daemons import daemon
from fleets import EVALUATION, report, signing_key, write_fleet, write_rounds
from ingress import ADDRESS, PATH, ingress
from pages import HOSTILE, LAPTOP, SMALL_PHONE, check_looks, expect, go_to, opened, runs, unfold
from services import until

from edgetune.daemon.keys import add_key
from edgetune.formats.bundle import open_bundle
from edgetune.parts.fleet.membership import invites
from edgetune.parts.fleet.membership.members import read_member
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.folder import begin, newest_order
from edgetune.parts.fleet.rollout.rings import RingPlan

KEY = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return write_fleet(open_bundle(model), tmp_path_factory.mktemp("fleet") / "folder")


@pytest.fixture(scope="module")
def url(model, folder, tmp_path_factory):
    with daemon(model, tmp_path_factory.mktemp("daemon") / "state", context=256, fleet=str(folder)) as running:
        yield str(running.url)


def ask_to_join(folder, device, key):
    now = int(time.time())
    invites.join(folder, invites.invite(folder, now), device, key, now)


def decide(page, verb, within="#changes"):
    page.locator(within).get_by_role("button", name=verb).click()
    expect(page.locator("#sure-text")).not_to_be_empty()
    page.locator("#sure").get_by_role("button", name=verb).click()


def test_devices_rings_and_rounds_are_seen(page, folder):
    rollout = newest_order(folder).facts.rollout
    report(folder, "d3", rollout=rollout, execution=rings.CLOSED, finished=rings.FAILURE, reason=HOSTILE)
    expect(page.locator("#rollout-name")).to_have_text("adapter")
    expect(page.locator("#rollout-status")).to_have_text("running")
    ring = page.get_by_role("list", name="Rings").get_by_role("listitem")
    expect(ring).to_have_count(3)
    expect(ring.nth(1)).to_contain_text("Ring 2: 2 devices1 refused, 1 waiting")
    assert ring.nth(1).locator(".refused").get_attribute("style") == "width: 50%;"
    expect(ring.nth(2)).to_contain_text("not begun")
    page.reload()
    page.click("#fleet-devices summary")
    cards = page.locator("#fleet-list > li")
    expect(cards).to_have_count(6)
    expect(cards.nth(0)).to_contain_text(HOSTILE)  # what failed comes first
    expect(cards.nth(1)).to_contain_text("Not surely better: 0 of 6 more.")
    kitchen = cards.filter(has_text="kitchen")
    expect(kitchen).to_contain_text("Raspberry Pi 5, aarch64 · tiny with fleet 1 · edgetune")
    expect(kitchen).to_contain_text("seen ")
    expect(page.locator("#round-now")).to_contain_text(re.compile(r"Round 4 of Tiny\.gguf runs\. .*arrived: 0\."))
    plot = page.locator("#fleet-rounds svg")
    expect(plot).to_have_attribute("aria-label", "Loss by round: before from 2.148 to 1.768, after from 1.933 to 1.591")
    expect(plot.locator("circle")).to_have_count(3)
    page.click("#ended summary")
    rows = page.locator("#round-rows > tr")
    expect(rows).to_have_count(9)
    expect(rows.nth(0)).to_have_text("3 (1 left out)31.7681.591")
    expect(rows.nth(1)).to_have_text("Raspberry Pi 5, aarch6411.6201.458")
    page.click("#refused summary")
    left_out = page.locator("#refused-list > li").first
    expect(left_out).to_have_text(re.compile(r"Round 3, late: answer\.json is of version"))


def test_what_noise_hides_is_seen(page, model, folder, tmp_path):
    expect(page.locator("#fleet-rounds")).to_be_visible()
    expect(page.locator("#round-noise")).to_be_hidden()
    rounds = [*folder.glob("round-*")]
    for place in rounds:
        place.rename(tmp_path / place.name)
    write_rounds(open_bundle(model), folder, 2, noise=4.0)
    page.reload()
    lines = page.get_by_role("list", name="Noise").get_by_role("listitem")
    expect(lines.nth(0)).to_have_text("Noise, delta 0.00001: epsilon 0.926 in the last round and 1.36 in all, against "
                                      "whoever sees the answers of a device.")
    expect(lines.nth(1)).to_contain_text("against whoever sees the sums alone")
    expect(page.locator("#round-rows")).not_to_contain_text("NaN")
    for place in rounds:
        shutil.rmtree(place, ignore_errors=True)
        (tmp_path / place.name).rename(place)


def test_a_rollout_is_paused_continued_and_undone(page, folder):
    page.locator("#changes").get_by_role("button", name="Stop").click()
    page.locator("#sure").get_by_role("button", name="Leave it").click()
    assert newest_order(folder).state.status == rings.RUNNING
    for verb, status in (("Pause", rings.PAUSED), ("Resume", rings.RUNNING), ("Undo", rings.UNDOING)):
        decide(page, verb)
        expect(page.locator("#rollout-status")).to_have_text(status)
        until(lambda status=status: newest_order(folder).state.status == status)
    expect(page.locator("#rollout-why")).to_have_text("1 devices have it still.")
    rollout = newest_order(folder).facts.rollout
    report(folder, "kitchen", rollout=rollout, execution=rings.CANCELED, finished=rings.SUCCESS)
    decide(page, "Advance")
    expect(page.locator("#rollout-status")).to_have_text(rings.UNDONE)
    expect(page.locator("#changes button")).to_have_count(0)


def test_it_says_why_no_ring_begins_by_itself(page, folder, tmp_path):
    expect(page.locator("#rollout-obstacle")).to_be_hidden()
    key = signing_key(tmp_path / "key")
    begin(folder, folder / "round-0004" / "task" / "adapter", RingPlan(("all",)), EVALUATION, int(time.time()), key=key)
    page.reload()
    expect(page.locator("#rollout-obstacle")).to_have_text(re.compile(
        r"No ring begins by itself: The order of \S+ is signed by \w{16}, and this daemon has no --fleet-sign\."))


def test_a_device_is_invited_approved_and_revoked(page, folder):
    expect(page.locator("#members")).to_be_hidden()
    page.click("#invite")
    page.locator("#sure").get_by_role("button", name="Make a code").click()
    command = page.locator("#invited code")
    expect(command).to_have_text(re.compile(r"edgetune fleet join URL --code \S+"))
    port = page.url.split(":")[-1].strip("/")
    expect(page.locator("#invited")).to_contain_text(f"such as http://192.168.1.20:{port}. The address of this page "
                                                     "is one of this machine alone.")
    now = int(time.time())
    invites.join(folder, command.inner_text().split()[-1], "shed", KEY, now)
    ask_to_join(folder, "attic", "f" * 64)
    page.reload()
    expect(page.locator("#members-count")).to_have_text("Devices that asked to join: 2, of which 2 wait for you")
    page.click("#members summary")
    shed = page.locator("#members-list > li").filter(has_text="shed")
    expect(shed).to_contain_text("key 0123 4567 89ab cdef")
    shed.get_by_role("button", name="Approve").click()
    expect(page.locator("#sure-text")).to_contain_text("Its key begins with 0123 4567 89ab cdef")
    page.locator("#sure").get_by_role("button", name="Approve").click()
    expect(shed.locator(".badge")).to_have_text("approved")
    assert read_member(folder, "shed").state == "approved"
    expect(page.locator("#members-count")).to_have_text("Devices that asked to join: 2, of which 1 waits for you")
    page.locator("#members-list > li").filter(has_text="attic").get_by_role("button", name="Refuse").click()
    page.locator("#sure").get_by_role("button", name="Leave it").click()
    assert read_member(folder, "attic").state == "waiting"
    shed.get_by_role("button", name="Revoke").click()
    page.locator("#sure").get_by_role("button", name="Revoke").click()
    expect(shed.locator(".badge")).to_have_text("revoked")
    expect(shed.get_by_role("button")).to_have_count(0)
    assert read_member(folder, "shed").state == "revoked"
    page.reload()
    page.click("#fleet-devices summary")
    expect(page.locator("#fleet-list .badge")).to_have_text(["excluded"] * 6)  # they have not joined


def test_the_command_to_join_has_an_address_of_devices(browser, model, tmp_path):
    """The page's own one, where it is no proxy's."""
    (tmp_path / "folder").mkdir()
    key = add_key(tmp_path / "keys", "owner")
    with daemon(model, tmp_path / "state", context=256, fleet=str(tmp_path / "folder"), host="127.0.0.3",
                key_file=str(tmp_path / "keys"), trusted_proxy=ADDRESS) as running, ingress(running.url) as hub:
        for address, joins, why in ((running.url, running.url, ""), (f"{hub}{PATH}/", "URL", "lets people in alone")):
            with opened(browser, address, **LAPTOP) as page:
                if not why:
                    page.fill("#key", key)
                    page.locator("#ask-key").get_by_role("button", name="Continue").click()
                runs(page)
                page.click("#invite")
                page.locator("#sure").get_by_role("button", name="Make a code").click()
                expect(page.locator("#invited code")).to_have_text(
                    re.compile(rf"edgetune fleet join {re.escape(joins)} --code \S+"))
                expect(page.locator("#invited")).to_contain_text(why)
                assert ("192.168.1.20:8642" in page.locator("#invited").inner_text()) == bool(why)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_well(browser, url, scheme):
    with opened(browser, url, color_scheme=scheme, **SMALL_PHONE) as page:
        runs(page)
        go_to(page, "Fleet")
        unfold(page)
        expect(page.locator("#fleet-list > li")).to_have_count(6)
        expect(page.locator("main section:visible h2")).to_have_count(1)
        check_looks(page)


@pytest.mark.dev
def test_without_a_fleet_nothing_of_it_is_shown(browser, running):
    with opened(browser, str(running.url), **LAPTOP) as page:
        runs(page)
        expect(page.locator("#fleet")).to_be_hidden()
        expect(page.locator("nav [data-to=fleet]")).to_be_hidden()
