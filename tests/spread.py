"""Which of pytest's processes runs which file. What compares with PyTorch or scikit-learn runs in the first one alone:
to import these takes a process five seconds, and each process that it starts later becomes more expensive.

xdist wants all of its processes to collect the same tests. Here the others leave out what the first one has.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

FOLDERS = ("adapters", "compress", "models", "objectives")
FILES = ("backends/test_ops.py", "evaluation/test_canary.py", "formats/test_bert.py", "formats/test_encoder_kinds.py",
         "llamacpp/test_sampling.py", "llamacpp/test_wordpiece.py", "serving/test_own_states.py",
         "serving/test_rollouts.py", "serving/test_tasks.py", "training/test_embed.py", "training/test_labelled.py",
         "training/test_optim.py", "tutor/test_judge.py")
TESTS = Path(__file__).parent


class Spread(LoadFileScheduling):  # type: ignore[misc]
    """Gives each process the next file that it has collected; the first one begins with those that no other has."""

    def _check_nodes_have_same_collection(self) -> bool:
        """The order of `registered_collections` says which is the list of all tests, and that of `assigned_work`
        which processes are too many where there are few files.
        """
        found = sorted(self.registered_collections.items(), key=lambda one: -len(one[1]))
        self.registered_collections = dict(found)
        self.assigned_work = {node: self.assigned_work[node] for node, _ in found}
        self.shared = set(found[-1][1])  # by all processes
        assert all(set(found[0][1]) >= set(tests) >= self.shared for _, tests in found)
        return True

    def _next(self, node: WorkerController) -> str | None:
        """The file that a process gets next, None where all that is left must run in another."""
        has_all = len(self.registered_collections[node]) == len(self.collection)
        files = [(next(iter(tests)) in self.shared, place, file)
                 for place, (file, tests) in enumerate(self.workqueue.items())]
        return min(((is_shared, place, file) for is_shared, place, file in files if is_shared or has_all),
                   default=(True, 0, None))[2]

    def _assign_work_unit(self, node: WorkerController) -> None:
        file = self._next(node)
        if file is None:
            node.shutdown()
            return
        self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        """A process that replaces one that crashed may still be collecting; one with tests left needs none yet."""
        if node not in self.registered_collections or self._pending_of(self.assigned_work[node]) > 2:
            return
        if self.workqueue and not node.shutting_down and self._next(node) is None:
            node.shutdown()
            return
        super()._reschedule(node)


def leaves_out(config: pytest.Config, number: int, processes: int) -> bool:
    """Whether a process leaves files to the first one: where all tests run. One that replaces another that crashed,
    whose number is above, has all of them.
    """
    return config.args_source is not pytest.Config.ArgsSource.ARGS and 0 < number < processes


def is_for_the_first(path: Path) -> bool:
    """Whether a file or folder of tests is."""
    place = path.relative_to(TESTS) if path.is_relative_to(TESTS) else Path()
    return place.as_posix() in FILES or place.parts[:1] in [(folder,) for folder in FOLDERS]
