"""edgetune.formats.work: a folder of work is there until its output is, and a kill leaves nothing that stays."""

import os
from pathlib import Path

import pytest

from edgetune.disk import new_folder
from edgetune.errors import UsageError
from edgetune.formats.work import finish, refuse_made, remove


class Killed(BaseException):
    """No clean-up that waits for an error sees it."""


def made(folder):
    """(output, the work that made it)"""
    work = folder / "out.work"
    (work / "run" / "inner").mkdir(parents=True)
    for name in ("facts.json", "run/rows.jsonl", "run/inner/weights"):
        (work / name).write_text(name)
    with new_folder(folder / "out") as beside:
        (beside / "model").write_text("whole")
        finish(work, beside)
    return folder / "out", work


def kill_after(patch, changes):
    left = iter([None] * changes)

    def counted(call):
        def change(*given, **named):
            if next(left, "killed"):
                raise Killed
            return call(*given, **named)

        return change

    for name in ("unlink", "rmdir"):
        patch.setattr(os, name, counted(getattr(os, name)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_kill_leaves_of_work_goes_with_the_next_refusal(tmp_path):
    """Before any change that the removal makes: three files, two folders, what it says of its output, and itself."""
    for changes in range(7):
        out, work = made(tmp_path / str(changes))
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, changes)
            with pytest.raises(Killed):
                remove(work)
        assert names(out.parent) == ["out", "out.work"]
        with pytest.raises(UsageError, match="out exists; name another or remove it"):
            refuse_made(out, work)
        assert names(out.parent) == ["out"]
    out, work = made(tmp_path / "whole")
    remove(work)
    assert names(out.parent) == ["out"]


def test_work_that_did_not_make_what_is_there_stays(tmp_path):
    out, work = made(tmp_path)
    out.rename(tmp_path / "elsewhere")
    refuse_made(out, work)
    out.mkdir()
    with pytest.raises(UsageError, match="exists"):
        refuse_made(out, work)
    assert Path(work / "run" / "inner" / "weights").read_text() == "run/inner/weights"
    out.rmdir()
    for path in (work, work.with_name("none")):
        with pytest.raises(UsageError, match="exists"):
            refuse_made(tmp_path / "elsewhere", path)
        assert not path.exists()
