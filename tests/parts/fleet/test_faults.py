"""What a roll-out of a base does if the system refuses: see tests/test_faults.py."""

import shutil

import pytest
from faults import cases, intercepted, sweep
from slots import SimulatedDaemon, begun_rollout

from edgetune import disk
from edgetune.formats.bundle import open_bundle
from edgetune.formats.slot import Slot
from edgetune.parts.fleet.bases.slot import Owner
from edgetune.parts.fleet.rollout import rings
from edgetune.parts.fleet.rollout.apply import apply
from edgetune.parts.fleet.uptime import Moment


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return begun_rollout(tmp_path_factory.mktemp("begun"))


def rolling(begun):
    """A roll-out of a base, as in test_base_steps.py."""
    def scenario(folder):
        whole, old, new = begun
        shutil.copytree(whole, folder / "place", symlinks=True)
        place = folder / "place"
        daemon = SimulatedDaemon(place / "home")
        owner = Owner(Slot(place / "home"), daemon.start, 0.02)

        def act(now=10):
            with disk.refusals():
                return apply(place / "fleet", "kitchen", daemon, now, owner, at=Moment("boot", now))[0]

        yield act
        assert open_bundle(place / "home").fingerprint in (old, new)
        daemon.start()
        own = act()
        if own.execution == rings.PROCEEDING:
            own = act(100)
        is_said = own.finished == rings.FAILURE and "cannot write" in own.reason  # then the base before is served
        assert own.execution == rings.CLOSED
        assert is_said or own.finished == rings.SUCCESS, own
        assert daemon.base == open_bundle(place / "home").fingerprint == (old if is_said else new)

    return scenario


@pytest.mark.parametrize(("name", "kind", "lasting"), [*cases(["roll-out"])])
def test_no_base_is_lost_where_the_system_refuses(begun, tmp_path, name, kind, lasting):  # noqa: ARG001
    with intercepted():
        calls, wrong = sweep(tmp_path, kind, lasting, rolling(begun))
    print(f"{calls} calls")
    assert not wrong, "\n".join(f"{n}: {error}" for n, error in wrong.items())
