"""Changes of a fleet's devices and codes by several threads and processes at the same time: none is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgetune.errors import EdgetuneError, MismatchError, NotFoundError
from edgetune.parts.fleet.membership import invites, members

TRIES = 40
ROTATES = """
import sys
from itertools import count
from pathlib import Path
from edgetune.errors import MismatchError
from edgetune.parts.fleet.membership.members import rotate

folder = Path(sys.argv[1])
for device in sys.argv[2:]:
    print(device, flush=True)
    for number in count():
        is_revoked = (folder / device).exists()
        try:
            rotate(folder, device, f"{number:064x}", number)
        except MismatchError as error:
            print("refused" if "was revoked" in str(error) else error, flush=True)
            break
        if is_revoked:
            print("rotated a key after the revocation", flush=True)
            break
"""


def approved(folder, *devices):
    members.begin(folder)
    for device in devices:
        members.ask(folder, device, "0" * 64, 1)
        members.approve(folder, device, 2)


def test_a_revocation_outlives_rotations_in_threads(tmp_path):
    devices = [f"cam{i}" for i in range(TRIES)]
    approved(tmp_path, *devices)
    for device in devices:
        is_revoked = threading.Event()
        late = []
        begun = threading.Barrier(3)

        def rotate(first, device=device, is_revoked=is_revoked, late=late, begun=begun):
            begun.wait()
            for number in range(first, 10**9, 2):
                must_fail = is_revoked.is_set()
                try:
                    members.rotate(tmp_path, device, f"{number:064x}", number)
                except MismatchError:
                    return
                if must_fail:
                    late.append(number)
                    return

        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(rotate, first) for first in (1, 2)]
            begun.wait()
            try:
                assert members.revoke(tmp_path, device, 3).state == "revoked"
            finally:
                is_revoked.set()
            assert [each.result() for each in done] == [None, None]
        assert late == []
        assert members.read_member(tmp_path, device).state == "revoked"


def test_a_revocation_outlives_rotations_of_another_process(tmp_path):
    devices = [f"cam{i}" for i in range(TRIES)]
    approved(tmp_path, *devices)
    with subprocess.Popen([sys.executable, "-c", ROTATES, tmp_path, *devices], stdout=subprocess.PIPE,
                          text=True) as other:
        for device in devices:
            assert other.stdout.readline() == f"{device}\n"
            assert members.revoke(tmp_path, device, 3).state == "revoked"
            (tmp_path / device).touch()
            assert other.stdout.readline() == "refused\n"
    assert other.returncode == 0
    found, wrong = members.read_members(tmp_path)
    assert wrong == []
    assert {one.state for one in found.values()} == {"revoked"}
    assert sorted(path.name for path in (tmp_path / "members").iterdir()) == sorted(f"{name}.json" for name in devices)


def test_only_the_key_that_a_device_has_still_replaces_it(tmp_path):
    approved(tmp_path, "cam")
    old, new, other = (f"{number:064x}" for number in (0, 1, 2))
    assert members.rotate(tmp_path, "cam", new, 3, signed_by=old).key == new
    with pytest.raises(MismatchError, match="the device cam has another key by now"):
        members.rotate(tmp_path, "cam", other, 4, signed_by=old)
    assert members.read_member(tmp_path, "cam").key_before == old
    with pytest.raises(NotFoundError):
        members.revoke(tmp_path, "shed", 1)


def test_of_devices_that_use_a_code_at_the_same_time_one_joins(tmp_path):
    code = invites.invite(tmp_path, 0)

    def join(number):
        try:
            return invites.join(tmp_path, code, f"cam{number}", f"{number:064x}", 1).device
        except MismatchError as error:
            return error.what

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(join, range(8))]
    assert found.count("the code has been used") == 7
    assert [*members.read_members(tmp_path)[0]] == [one for one in found if one.startswith("cam")]


def test_guesses_at_the_same_time_are_all_counted(tmp_path):
    code = invites.invite(tmp_path, 0)

    def guess(letters):
        try:
            return invites.join(tmp_path, code[:-2] + letters, "cam", "0" * 64, 1).state
        except EdgetuneError as error:
            return error.hint

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(guess, [pair for pair in ("AA", "BB", "CC", "DD", "EE", "FF", "GG", "HH", "JJ", "KK")
                                   if not code.endswith(pair)][:9])]
    assert sum(hint.startswith("type it again") for hint in found) == invites.ATTEMPTS
    with pytest.raises(MismatchError, match="none of this fleet's"):
        invites.join(tmp_path, code, "cam", "0" * 64, 1)
