"""Sweeps of faults: the n-th call of a kind that an action makes fails, for n = 1, 2, ... until it makes fewer."""

import contextlib
import os
import shutil
import traceback

import pytest
from faults import KINDS, fault

from edgetune.errors import EdgetuneError

EVERY = int(os.environ.get("FAULTS_EVERY", "1"))  # n that is tried: 1, and each so many after it
MOST = 2000  # calls of a kind of one action: a sweep that goes on has found no end


def sweep(tmp_path, kind, lasting, scenario):
    """Runs a scenario with each n. Returns how many calls of the kind its action makes, and what went wrong, by n."""
    wrong = {}
    for n in range(1, MOST, EVERY):
        folder = tmp_path / str(n)
        folder.mkdir()
        try:
            planted = disturbed(folder, kind, n, lasting, scenario)
            was_hit = planted.hit
        except Exception as error:
            wrong[n] = "".join(traceback.format_exception(error)[-6:])
            was_hit = True
        if not was_hit:
            return planted.calls, wrong
        shutil.rmtree(folder)
    raise AssertionError(f"it makes {MOST} calls or more; {len(wrong)} go wrong: {[*wrong.values()][:1]}")


def disturbed(folder, kind, n, lasting, scenario):
    """What was planted. scenario: a generator function of a folder, whose value is the action; sent the error
    that it raised, or None, it checks what is left, and that the same action succeeds now.
    """
    run = scenario(folder)
    action = next(run)
    raised = None
    with fault(kind, n, lasting) as planted:
        try:
            action()
        except (EdgetuneError, MemoryError) as error:
            raised = error
    assert raised is None or (planted.hit and "\n" not in str(raised))
    with contextlib.suppress(StopIteration):
        run.send(raised)
    return planted


def cases(names, quick=()):
    """A case of each action, kind of call, and length of the refusal; quick: names and kinds that are not slow."""
    for name in names:
        for kind in KINDS:
            for lasting in (False, True):
                is_quick = (name, kind) in quick and not lasting
                yield pytest.param(name, kind, lasting, id=f"{name}-{kind}-{'from then on' if lasting else 'once'}",
                                   marks=[] if is_quick else [pytest.mark.slow, pytest.mark.timeout(1800)])
