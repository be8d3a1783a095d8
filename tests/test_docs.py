"""What is written is run: Python blocks of README and docs; their commands exist, with the options that they give; the
generated pages are current."""

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import prose
import pytest
import structure
from click.testing import CliRunner
from json_lines import read_lines, write_lines
from tiny import write_tiny

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {"README.md": (ROOT / "README.md").read_text("utf-8"),
         **{str(path.relative_to(DOCS)): path.read_text("utf-8") for path in sorted(DOCS.rglob("*.md"))}}
WRITTEN = {name: text for name, text in PAGES.items() if "docs/tools/generate.py; `make docs`" not in text}


def programs(page):
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.S)


def write_rows(folder):
    """Eight of them, as both pages have them."""
    rows = [{"prompt": f"{verb} the {thing}", "completion": f'{{"device":"{thing}","action":"{action}"}}'}
            for thing in ("lamp", "fan", "radio", "pump")
            for verb, action in (("turn on", "on"), ("switch off", "off"))]
    write_lines(folder / "rows.jsonl", rows)


@pytest.mark.dev
@pytest.mark.parametrize(("page", "count"), [("README.md", 1), ("reference/python.md", 3), ("reference/methods.md", 3),
                                             ("tutorial/python.md", 3)])
def test_programs_run(page, count, tmp_path, monkeypatch, capsys):
    """In this process, on a tiny model and the first of the example rows."""
    write_tiny(tmp_path / "model.gguf", formats="Q8_0", n_blocks=1, d_model=32, d_ff=64)
    (tmp_path / "smollm2").symlink_to(tmp_path / "model.gguf")  # a file comes before a model of that name
    home = tmp_path / "examples" / "home"
    home.mkdir(parents=True)
    for path in (ROOT / "examples" / "home").glob("*.jsonl"):
        write_lines(home / path.name, read_lines(path)[:8])
    write_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(programs(page)) == count
    for number, program in enumerate(programs(page)):
        exec(compile(program, f"{page}, program {number}", "exec"), {"__name__": "__main__"})
        assert capsys.readouterr().out
    assert list(tmp_path.glob("*/adapter.gguf"))


RUN_HERE = ["how-to/train.md", "how-to/manage-runs.md", "how-to/read-the-result.md", "how-to/generate.md",
            "how-to/fit-into-memory.md", "tutorial/first-adapter.md"]


@pytest.mark.slow  # a minute; another test parses these commands
def test_commands_of_pages_run(tmp_path, monkeypatch):
    """In this order and in one folder, on a tiny model, with files and adapters of these names."""
    from edgetune.cli import cli
    write_tiny(tmp_path / "smollm2", formats="Q8_0", n_blocks=1, d_model=32, d_ff=64)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_rows(tmp_path)
    for name in ("more", "test", "prompts", "my-rows"):
        write_lines(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {i}", "completion": str(i)} for i in range(4)])
    for name in ("first", "second", "third", "sums"):
        (tmp_path / name).symlink_to("my-adapter")
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in (line for page in RUN_HERE for line in shell_lines(PAGES[page]) if "# stopped" not in line):
        _, *words = shlex.split(line, comments=True)
        done = CliRunner().invoke(cli, words, input="hello\n")
        assert done.exit_code in (0, 1, 3), f"{line}: {done.output}"
        assert done.exception is None or isinstance(done.exception, SystemExit), line
        ran.append(words[0])
    assert {"data", "train", "chat", "resume", "eval", "compare", "report", "generate", "plan", "doctor"} <= set(ran)


@pytest.mark.slow  # twenty seconds; `make lab NAME=recipes` and `corrections` show on more rows that real models learn
def test_first_programs_end_with_the_learned_answer(smollm2, tmp_path):
    """What a newcomer tries first, on a real model."""
    for name in ("model.gguf", "smollm2"):
        (tmp_path / name).symlink_to(smollm2)
    write_rows(tmp_path)
    whole, steps = (subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True,
                                   text=True, check=True).stdout
                    for program in (programs("README.md")[0], programs("tutorial/python.md")[2]))
    assert "2 of 2 held-out rows are answered exactly, 0 before." in whole
    answers = re.findall(r"^  before: (.*)\n  after: (.*)$", whole, re.M)
    assert len(answers) == 2
    assert all("device" not in before and json.loads(after)["action"] in ("on", "off") for before, after in answers)
    before, after = steps.splitlines()[-2:]
    assert before.startswith("before ")
    assert "device" not in before
    assert after == 'after {"device":"lamp","action":"on"}'


def test_every_public_name_is_in_the_reference(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "tools")
    import python_page
    assert python_page.undocumented() == set()


def test_programs_are_in_pages_whose_programs_are_run():
    """Other tests: daemon/test_integrations.py for integrations.md and learn-from-feedback.md, test_monitor.py."""
    with_programs = {name for name, text in PAGES.items() if "```python" in text}
    assert with_programs == {"README.md", "reference/python.md", "reference/methods.md", "how-to/integrations.md",
                             "how-to/manage-runs.md", "how-to/learn-from-feedback.md", "tutorial/python.md"}


def shell_lines(text):
    """The edgetune commands of a page's shell blocks."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S)
             for line in block.replace("$(command -v edgetune)", "edgetune").replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\bsudo ", line)]
    return [part for part in parts if part.startswith("edgetune ")]


def test_commands_exist_with_the_options_that_the_pages_give(tmp_path, monkeypatch):
    from edgetune.cli import cli
    from edgetune.cli.names import renamed
    from edgetune.formats.named import place_of, source_of
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pulled = place_of(source_of("minilm"))  # whose presence a command's line is checked for
    pulled.parent.mkdir(parents=True)
    pulled.touch()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "my-adapter").mkdir()
    (tmp_path / "my-adapter" / "run.toml").write_text('model = "model.gguf"\ndata = "rows.jsonl"\n')
    (tmp_path / "my-adapter" / "run.json").write_text('{"model": "model.gguf", "data": "rows.jsonl"}')
    named = {name for text in WRITTEN.values() for name in re.findall(r"`edgetune +([a-z][a-z-]*)", text)}
    assert {"train", "eval", "demo", "chat", "plan", "serve", "doctor"} <= named
    for name in named:
        assert cli.get_command(None, name) is not None or name in renamed(), name
    lines = [line for text in WRITTEN.values() for line in shell_lines(text)]
    for line in lines:
        _, *words = shlex.split(line, comments=True)
        command: click.Command = cli
        while isinstance(command, click.Group) and words:
            _, command, words = command.resolve_command(click.Context(command), words)
        command.make_context(line, words)  # raises for what it does not know
    assert len(lines) >= 15


def test_doctor_is_shown_with_all_that_it_says():
    from edgetune.cli.info import examine
    labels = {name.replace("_", " ") for name in examine()} - {"ready", "verdict", "board"}  # where it is one
    shown = re.findall(r"```text\n\$ edgetune doctor\n(.*?)```", PAGES["reference/terminal.md"], re.S)
    assert shown
    for text in shown:
        assert {label for label in labels if re.search(rf"^{label}  ", text, re.M)} == labels


@pytest.mark.dev
def test_generated_pages_are_current(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "tools")
    spec = importlib.util.spec_from_file_location("generate", DOCS / "tools" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.stale() == [], "run make docs"


def spoken(text):
    """The strings of a program as people read them, with … for what is filled in."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.dev
def test_the_messages_of_the_page_of_symptoms_are_those_of_the_program():
    said = {text for path in (ROOT / "edgetune").rglob("*.py") for text in spoken(path.read_text("utf-8"))}
    cells = re.findall(r"^\| (`.*?) \|", PAGES["how-to/troubleshooting.md"], re.M)
    quoted = [quote for cell in cells for quote in re.findall(r"`(.*?)`", cell)]
    assert len(quoted) > 10
    for quote in quoted:
        pattern = re.compile(".*".join(map(re.escape, quote.split("…"))), re.S)
        assert any(map(pattern.search, said)), f"nothing says {quote!r}"


def test_the_readme_leads_to_every_page():
    """Itself, or by a page that it leads to."""
    pages = {path_of(name) for name in PAGES} | {ROOT / "CONTRIBUTING.md"}
    reached = {ROOT / "README.md"}
    found = reached
    while found:
        links = {(page.parent / target).resolve() for page in found
                 for target in re.findall(r"\]\(([\w/.-]+\.md)", page.read_text("utf-8"))}
        found = (links & pages) - reached
        reached |= found
    assert reached == pages


def test_the_site_has_every_page_once():
    """In its navigation; `make site` checks links and anchors."""
    listed = re.findall(r"^ +- (\S+\.md)$", (DOCS / "tools" / "mkdocs.yml").read_text("utf-8"), re.M)
    assert len(listed) == len(set(listed))
    assert {ROOT / name for name in listed} >= {*DOCS.rglob("*.md"), *ROOT.glob("*.md")}
    assert all((ROOT / name).exists() for name in listed)


def test_the_readme_names_the_tests():
    """The command that CI runs."""
    command = "make install EXTRAS=test && make test"
    assert command in PAGES["README.md"]
    assert command in [line.strip() for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()]


def path_of(page):
    return ROOT / page if page == "README.md" else DOCS / page


def anchors_of(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for page in [*sorted(ROOT.glob("*.md")), ROOT / "native" / "README.md", *map(path_of, PAGES)]:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)", page.read_text("utf-8")):
            if "://" not in target:
                path = page.parent / target if target else page
                assert path.exists(), f"{page} links to {target}"
                assert not anchor or path.suffix != ".md" or anchor in anchors_of(path), f"{page}: {target}#{anchor}"


@pytest.mark.dev
@pytest.mark.parametrize("page", PAGES)
def test_no_empty_line_divides_a_table(page):
    assert re.findall(r"^\|.*\n\n(\|.*)\n(?!\|[-| :]*\|$)", PAGES[page], re.M) == []


def test_results_name_machine_date_and_command():
    tables = re.findall(r"machine, date \| command \|\n\|[-|]*\|\n((?:\|.*\n)+)", PAGES["results/benchmarks.md"])
    rows = [row.strip("| ").split(" | ")[-2:] for table in tables for row in table.splitlines()]
    assert len(rows) > 30
    for where, command in rows:
        assert re.search(r"2026-\d\d-\d\d|every CPU", where), where
        assert re.search(r"`|script of its day|code in turn|the same", command), command


def test_first_pages_are_short():
    assert len(PAGES["README.md"].splitlines()) <= 120
    assert len(CONTRIBUTING.splitlines()) <= 150


FOR_USERS = [name for name in WRITTEN if not name.startswith(("development/", "results/"))]


@pytest.mark.parametrize(("pages", "most"), [
    *(([name], 1.0) for name in FOR_USERS if name.startswith(("tutorial/", "how-to/"))), (FOR_USERS, 0.05),
    *(([f"reference/{page}.md"], 0.02) for page in ("python", "methods", "http-api"))])
def test_sentences_are_short(pages, most):
    """Of all pages for users few are long, and of the generated ones still fewer."""
    lengths = [words for name in pages for words in prose.lengths(PAGES[name])]
    assert lengths
    assert prose.mean(lengths) < 20
    assert sum(words > prose.LONG for words in lengths) <= most * len(lengths)


def test_sentences_are_counted():
    """Tables, headings and code are no sentences; a list's items are."""
    page = ("# A heading\n\nOne `two three` [four](five.md). Is it 3.5?\n\n| a | b c |\n\n- an item\n"
            "- another, e.g. this\n\n```sh\nedgetune train\n```\n\n    indented code\n")
    assert prose.lengths(page) == [3, 3, 2, 3]


# ---- for contributors -----------------------------------------------------------------------------------------------

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXTENDING = PAGES["development/extending.md"]


REAL = re.findall(r"`([0-9a-f]{8})`, ([^|]*): (\d+) \|$", EXTENDING, re.M)
NOT_COUNTED = re.compile(r"^(tests|docs|examples)/|\.md$|^llms\.txt$|^\.ci/|^Makefile$")


def touched(commit):
    """The files of a commit that its kind of change needs: neither tests nor pages. None without the history."""
    done = subprocess.run(["git", "show", "--format=", "--name-only", commit], cwd=ROOT, capture_output=True, text=True)
    return None if done.returncode else [name for name in done.stdout.split() if not NOT_COUNTED.search(name)]


@pytest.mark.parametrize(("commit", "what", "count"), REAL, ids=lambda value: value[:20])
def test_the_last_real_change_touched_so_many_files(commit, what, count):
    files = touched(commit)
    if files is None:
        pytest.skip("the history is not here: this is no whole clone")
    assert len(files) == int(count), what


def test_rows_are_found():
    assert len(REAL) > 10


@pytest.mark.parametrize("module", re.findall(r'```py\n(""".*?)```', EXTENDING, re.S), ids=lambda text: text[3:20])
def test_whole_modules_of_the_page_pass_make_lint(module):
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", str(ROOT / "edgetune/new.py"), "-"]
    done = subprocess.run(command, input=module, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("text", [CONTRIBUTING, EXTENDING], ids=["CONTRIBUTING.md", "extending.md"])
def test_files_that_contributors_are_sent_to_exist(text):
    named = re.findall(r"`((?:edgetune|native|tests|docs|devices)/[\w/.-]+)`", text)
    assert len(named) > (15 if text is not CONTRIBUTING else 2)
    for path in named:
        assert (ROOT / path).exists() or ("NAME" in path and (ROOT / path.partition("NAME")[0]).is_dir()), path
    for path in re.findall(r"- `([a-z_]+/[\w/]+\.py)`", text):
        assert (ROOT / "edgetune" / path).exists(), path


def test_the_map_has_all_rooms_on_their_floors():
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", CONTRIBUTING, re.M)
    drawn = [[box for floor, names in rows if int(floor) == number for box in re.findall(r"`(\w+)`", names)]
             for number in range(len(structure.FLOORS))]
    assert [sorted(floor) for floor in drawn] == [sorted(floor) for floor in structure.FLOORS]


def install(name, marker, folder, monkeypatch):
    """The first program of the page that holds `marker`, as a module of this name."""
    blocks = re.findall(r"```py\n(.*?)```", PAGES["development/extending.md"], re.S)
    path = folder / f"{name.rpartition('.')[2]}.py"
    path.write_text(next(block for block in blocks if marker in block))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)


def test_the_objective_of_the_page_is_one(tmp_path, tiny_llama, monkeypatch):
    """As a file of its room, with a = -d(loss)/d(log p) by finite differences, and it learns."""
    from counting import OPTIONS, sequences

    from edgetune import Trainer
    from edgetune.data.packing import collate
    from edgetune.objectives import base

    monkeypatch.setattr(base._registry, "_found", dict(base._registry._found))
    install("edgetune.objectives.probability", "Objective", tmp_path, monkeypatch)
    objective = base.make_objective("probability", {})
    batch = collate(sequences(2))
    logp = np.linspace(-5, -0.1, batch.supervised.size).astype(np.float32)
    for i, a in enumerate(objective.weights(logp, batch).a):
        step = np.zeros_like(logp)
        step[i] = 1e-2
        rise = objective.weights(logp + step, batch).loss - objective.weights(logp - step, batch).loss
        assert -rise / 2e-2 == pytest.approx(a, rel=1e-2, abs=1e-4)
    trainer = Trainer(tiny_llama, objective=objective, **{**OPTIONS, "steps": 20})
    trainer.add_examples(sequences(8))
    before = trainer.loss(trainer.examples)[0]
    trainer.train()
    assert trainer.loss(trainer.examples)[0] < 1.5 * before < 0


def test_the_family_of_the_page_is_one(tmp_path, bundle, monkeypatch):
    """As a file of its room: its step makes values 0, and what it saves is an adapter that llama.cpp applies."""
    from counting import OPTIONS, sequences

    from edgetune import Trainer, open_adapter
    from edgetune.adapters import base

    monkeypatch.setattr(base._registry, "_found", dict(base._registry._found))
    install("edgetune.adapters.lasso", "LoraFamily", tmp_path, monkeypatch)
    zeros = []
    for shrink in (0.0, 0.5):
        trainer = Trainer(bundle, **{**OPTIONS, "steps": 4}, family="lasso", shrink=shrink)
        trainer.add_examples(sequences(8))
        trainer.train()
        zeros.append(sum(np.count_nonzero(pair.b == 0) for pair in trainer.pairs.values()))
    assert zeros[0] < zeros[1]
    trainer.save(tmp_path / "out")
    assert open_adapter(tmp_path / "out").run["options"]["shrink"] == 0.5


def test_the_grader_of_the_page_is_one(tmp_path, monkeypatch):
    """As a file of its room, read from JSON beside the others."""
    from edgetune.errors import UsageError
    from edgetune.evaluation.graders import base
    from edgetune.evaluation.graders.sample import Sample

    base.grader_types()
    monkeypatch.setattr(base._registry, "_found", dict(base._registry._found))
    install("edgetune.evaluation.graders.repeats", "OneByOne", tmp_path, monkeypatch)
    grader = base.read_grader({"type": "repeats", "strictness": 2})
    grades = grader.grade([Sample("a b c d"), Sample("a a"), Sample("")], [{}] * 3)
    assert [grade.reward for grade in grades] == [1, 0.25, 0]
    assert grades[2].errors == {"sample_parse_error": True}
    with pytest.raises(UsageError, match="strictness of the grader repeats is 0; give more than 0"):
        base.read_grader({"type": "repeats", "strictness": 0})
