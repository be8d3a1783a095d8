"""The sandbox of python graders: what is tried there earns nothing, promptly, and the next call is graded."""

import threading
import time

import pytest

from edgetune.errors import UsageError
from edgetune.evaluation.graders import confinement, sandbox
from edgetune.evaluation.graders.base import Grade, read_grader
from edgetune.evaluation.graders.sample import Sample

pytestmark = pytest.mark.skipif(bool(confinement.lacks()), reason="the kernel has no seccomp")

SECRET = "a user's file"


def python(body, **fields):
    return read_grader({"type": "python", "name": "p", "source": body, **fields})


def tries(code, **fields):
    """A grader that does this for the answer "try", and answers 0.5 for others."""
    return python(f"def grade(sample, item):\n    if sample['output_text'] == 'try':\n        {code}\n    return 0.5",
                  **fields)


ATTACKS = {
    "writes": ("open(item['free'], 'w').write('x')", "Operation not permitted"),
    "appends": ("open(item['file'], 'a')", "Operation not permitted"),
    "reads": ("return float(len(open(item['file']).read()))", "Permission denied"),
    "lists": ("import os; return float(len(os.listdir(item['folder'])))", "Permission denied"),
    "removes": ("import os; os.remove(item['file'])", "Operation not permitted"),
    "renames": ("import os; os.rename(item['file'], item['free'])", "Operation not permitted"),
    "makes a folder": ("import os; os.mkdir(item['free'])", "Operation not permitted"),
    "links": ("import os; os.symlink(item['file'], item['free'])", "Operation not permitted"),
    "changes modes": ("import os; os.chmod(item['file'], 0)", "Operation not permitted"),
    "forks": ("import os; os.fork()", "Operation not permitted"),
    "runs": ("import subprocess; subprocess.run(['true'])", "Operation not permitted"),
    "executes": ("import os; os.execv('/bin/true', ['true'])", "Operation not permitted"),
    "starts a thread": ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
    "opens a socket": ("import socket; socket.socket()", "Operation not permitted"),
    "opens a pair of sockets": ("import socket; socket.socketpair()", "Operation not permitted"),
    "kills": ("import os; os.kill(os.getppid(), 9)", "Operation not permitted"),
    "lifts a limit": ("import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))", "not "),
    "calls by number": ("import ctypes; c = ctypes.CDLL(None, use_errno=True); r = c.syscall(425, 1, 0); "
                        "raise OSError(ctypes.get_errno(), 'refused')", "[Errno 1]"),  # io_uring_setup
    "replies with a riddle": ("import os; os.write(4, b'[' * 60000 + b'\\n'); return 1.0", "pipe of its replies"),
    "takes memory": ("return float(len(' ' * (1 << 30)))", "MemoryError"),
    "takes memory bit by bit": ("x = []\n        while True: x.append(bytes(1 << 20))", "MemoryError"),
    "exits": ("import sys; sys.exit(0)", "SystemExit"),
    "ends": ("import os; os._exit(3)", "exit code 3"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "raises": ("raise ValueError('no')", "ValueError: no (line 3)"),
    "raises what cannot be shown": ("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})", "E"),
    "is not a number": ("return float('nan')", "not finite"),
    "is infinite": ("return 1e999", "not finite"),
    "is a text": ("return '1'", "returned a str"),
    "is nothing": ("return None", "returned a NoneType"),
    "answers by itself": ("import os; [os.write(n, b'{\"id\": 1, \"reward\": 1.0}\\n' * 2) for n in range(3, 5)]", ""),
    "nests its reply": ("import os; [os.write(n, b'[' * 60000 + b'\\n') for n in range(3, 5)]", ""),
    "closes the pipes": ("import os; os.closerange(0, 99)", ""),
}


@pytest.mark.dev
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_tried_earns_nothing_and_the_next_call_works(attack, tmp_path):
    code, says = ATTACKS[attack]
    (tmp_path / "file").write_text(SECRET)
    item = {"file": str(tmp_path / "file"), "free": str(tmp_path / "free"), "folder": str(tmp_path)}
    grader = tries(code, memory=256)
    tried, *others = grader.grade([Sample("try"), Sample("a"), Sample("b")], [item] * 3)
    assert tried.reward == 0
    assert tried.errors["python_grader_runtime_error"] is True
    assert says in tried.errors["python_grader_runtime_error_details"]
    assert SECRET not in tried.errors["python_grader_runtime_error_details"]
    assert [(other.reward, other.errors) for other in others] == [(0.5, {})] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == SECRET


@pytest.mark.dev
@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(1000)",
                                  "import signal; signal.signal(15, 1)\n        while True:\n            try: "
                                  "time.sleep(1)\n            except BaseException: pass"])
def test_a_call_that_hangs_is_ended(code):
    grader = tries(code, timeout=1)
    begun = time.monotonic()
    hung, other = grader.grade([Sample("try"), Sample("a")], [{}, {}])
    assert hung.errors["python_grader_runtime_error_details"] == "it took more than 1 s"
    assert other.reward == 0.5
    assert time.monotonic() - begun < 30


def test_what_is_printed_disturbs_nothing():
    grader = tries("print('x' * (1 << 22)); import sys; sys.stderr.write('y'); return 1")
    assert [grade.reward for grade in grader.grade([Sample("try"), Sample("a")], [{}, {}])] == [1, 0.5]


def test_openais_example():
    grader = python("from rapidfuzz import fuzz, utils\n\ndef grade(sample, item) -> float:\n"
                    '    output_text = sample["output_text"]\n    reference_answer = item["reference_answer"]\n'
                    "    return fuzz.WRatio(output_text, reference_answer, processor=utils.default_process) / 100.0\n")
    from rapidfuzz import fuzz, utils
    text, reference = "fuzzy wuzzy was a bear", "fuzzy wuzzy had no hair"
    found, = grader.grade([Sample(text)], [{"reference_answer": reference}])
    assert found.reward == fuzz.WRatio(text, reference, processor=utils.default_process) / 100


@pytest.mark.dev
def test_packages_that_openais_graders_have_can_be_imported():
    """In the grader's first lines, where their import has more time than a call."""
    grader = python("import json, re, numpy\nfrom nltk.metrics import edit_distance\n"
                    "from rouge_score.rouge_scorer import RougeScorer\nfrom jsonschema import validate\n"
                    "def grade(sample, item):\n    validate(1, {})\n"
                    "    return edit_distance('ab', 'ac') + RougeScorer(['rouge1']).score('a', 'a')['rouge1'].fmeasure")
    assert grader.grade([Sample("a")], [{}])[0] == Grade(2.0)


def test_what_a_grader_sees():
    """OpenAI's sample, and numbers of numpy as rewards."""
    grader = python("import numpy\ndef grade(sample, item):\n"
                    "    assert set(sample) == {'choices', 'output_text', 'output_json', 'output_tools'}\n"
                    "    assert sample['choices'][0]['message']['content'] == sample['output_text']\n"
                    "    assert sample['output_tools'] == item['calls']\n"
                    "    return numpy.float32(sample['output_json']['x'] + item['x'])")
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    found, none = grader.grade([Sample('{"x": 0.25}', calls), Sample("no", calls)], [{"x": 0.5, "calls": calls}] * 2)
    assert (found.reward, found.errors) == (0.75, {})
    assert "TypeError" in none.errors["python_grader_runtime_error_details"]


def test_one_process_serves_many_calls_and_nothing_of_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", SECRET)
    grader = python("import os\ncalls = []\ndef grade(sample, item):\n    calls.append(1)\n"
                    "    assert 'SOME_KEY' not in os.environ\n    return float(len(calls))")
    assert [grade.reward for grade in grader.grade([Sample(str(n)) for n in range(50)], [{}] * 50)] == [
        *map(float, range(1, 51))]


def test_a_large_answer_and_what_json_cannot_say():
    grader = python("def grade(sample, item): return float(len(sample['output_text']) + len(item['x']))")
    found, = grader.grade([Sample("ä\ud800" * 500_000)], [{"x": {1, 2}}])
    assert found.reward == 1_000_000 + len(str({1, 2}))


def test_the_process_outlives_the_thread_that_started_it():
    """The kernel ends the process with that thread; another is started."""
    grader = tries("pass")
    thread = threading.Thread(target=lambda: grader.grade([Sample("a")], [{}]))
    thread.start()
    thread.join()
    for _ in range(3):
        assert grader.grade([Sample("a")], [{}])[0].reward == 0.5


@pytest.mark.parametrize(("fields", "says"), [
    ({"source": "def grade(a, b:"}, "source of the grader p is not Python"),
    ({"source": "x = 1"}, "defines no function grade"),
    ({"source": f"def grade(a, b): return 1\n# {'x' * 256_000}"}, "the limit is 256000"),
    ({"source": "def grade(a, b): pass", "timeout": 121}, "timeout of the grader p is 121 s; choose up to 120"),
    ({"source": "def grade(a, b): pass", "timeout": 0}, "timeout of the grader p is 0 s"),
    ({"source": "def grade(a, b): pass", "memory": 9000}, "memory of the grader p is 9000 MiB"),
])
def test_what_is_no_python_grader(fields, says):
    with pytest.raises(UsageError) as error:
        read_grader({"type": "python", "name": "p", **fields})
    assert says in str(error.value)


@pytest.mark.parametrize(("source", "says"), [
    ("import nowhere\ndef grade(a, b): return 1", r"fails \(ModuleNotFoundError: No module named 'nowhere' \(line 1\)"),
    ("grade = 1 / 0", "ZeroDivisionError"), ("import sys\nsys.exit()\ngrade = 1", "SystemExit"),
])
def test_a_source_that_fails_is_found_with_the_rows(source, says):
    grader = python(source)
    with pytest.raises(UsageError, match=says):
        grader.check_item({})
    assert "python_grader_runtime_error" in grader.grade([Sample("a")], [{}])[0].errors


def test_a_source_that_hangs(monkeypatch):
    monkeypatch.setattr("edgetune.evaluation.graders.sandbox.START_SECONDS", 0.3)
    with pytest.raises(UsageError, match=r"fails \(it took more than 0.5 s\)"):
        python("while True: grade = 1", timeout=0.2).check_item({})


def test_a_call_that_is_interrupted_leaves_no_reply_to_the_next(monkeypatch):
    grader = python("import time\ndef grade(sample, item):\n    time.sleep(item['s'])\n    return item['s']")
    grader.check_item({})
    real = sandbox._line

    def interrupted(*_):
        monkeypatch.setattr(sandbox, "_line", real)
        real(*_[:2], time.monotonic())
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox, "_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grader.grade([Sample("a")], [{"s": 0.2}])
    assert [found.reward for found in grader.grade([Sample("a")] * 2, [{"s": 0.0}, {"s": 0.01}])] == [0, 0.01]


def test_it_is_refused_where_it_is_not_allowed_or_not_confined(monkeypatch):
    written = {"type": "python", "name": "p", "source": "import socket\ndef grade(sample, item):\n"
               "    socket.socket().close()\n    return True"}
    assert "python_grader_runtime_error" in read_grader(written).grade([Sample("a")], [{}])[0].errors
    with pytest.raises(UsageError, match="a python grader is not allowed here"):
        read_grader(written, allow_python=False)
    monkeypatch.setattr(confinement, "lacks", lambda: "the kernel has no seccomp")
    with pytest.raises(UsageError, match=r"needs a sandbox, and the kernel has no seccomp; .*--unsafe-python"):
        read_grader({"type": "multi", "graders": {"a": written}, "calculate_output": "a"})
    found, = read_grader(written, allow_unsafe_python=True).grade([Sample("a")], [{}])
    assert (found.reward, found.errors) == (1, {})


def test_the_filter_of_the_other_architecture_has_its_numbers():
    """As in Linux's asm-generic/unistd.h; no call of one name is allowed by the number of another."""
    generic = {"openat": 56, "read": 63, "write": 64, "mmap": 222, "futex": 98, "exit_group": 94, "getrandom": 278}
    for name, number in generic.items():
        if name != "openat":
            assert confinement._ALLOWED[name][1] == number
    for which in (0, 1):
        numbers = [pair[which] for pair in confinement._ALLOWED.values() if pair[which] is not None]
        assert len(set(numbers)) == len(numbers)
    refused = {"socket": (41, 198), "connect": (42, 203), "clone": (56, 220), "execve": (59, 221), "kill": (62, 129),
               "ptrace": (101, 117), "unlinkat": (263, 35), "io_uring_setup": (425, 425), "setrlimit": (160, 164)}
    for which, machine in enumerate(("x86_64", "aarch64")):
        allowed = {pair[which] for pair in confinement._ALLOWED.values()}
        assert not {pair[which] for pair in refused.values()} & allowed
        assert all(len(step) == 8 for step in confinement._filter(machine))
