"""The whole way as a user types it: source, bundle, training, answers; the same bytes again; stopped, and gone on."""

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from commands import run
from durable import metrics
from kills import killed_before_removing
from tiny import write_tiny

pytest.importorskip("transformers")
pytest.importorskip("torch")

from edgetune.cli import cli
from edgetune.compress import memory as room
from edgetune.compress import pipeline as compression
from edgetune.compress.options import CompressConfig
from edgetune.compress.progress import never
from edgetune.errors import Interrupted, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.machine.device import read_device
from edgetune.serving.llama import LlamaModel

WORDS = ["", "the", "light", "off", "on", "set", "to", "turn", "user", "tool", "system", "10", '{"', '":', '"}']
TRIM = ["--vocab", 340]
FEWER = ["--drop-blocks", 1, "--width", 0.75]
DISTILL = ["--steps", 4, "--distill-length", 64, "--distill-batch", 2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress")
    write_tiny(folder / "model.gguf", formats="F16", n_blocks=3, d_model=256, d_ff=256)
    rng = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(150):
            row = {key: " ".join(rng.choice(WORDS, 12)) for key in ("prompt", "completion")}
            file.write(json.dumps(row) + "\n")
    return folder


def compress(place, name, *args, code=0, source="model.gguf", text="--calibrate"):
    given = [text, place / "rows.jsonl"] if text else []
    return run("compress", place / source, "-o", place / name, *given, "--measure-tokens", 512, "--calibrate-tokens",
               1024, "--threads", 1, *args, code=code)


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(place):
    """Every step at once, on the one thread that is asked for, also where llama.cpp answers."""
    threads = []

    def opened(path, **given):
        threads.append(given["threads"])
        return LlamaModel(path, **given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compression, "LlamaModel", opened)
        text = compress(place, "whole.edge", *TRIM, "--vocab-from", place / "rows.jsonl", *FEWER, "--distill",
                        place / "rows.jsonl", *DISTILL, "--target-size", "520K", "--device", "raspberry-pi-zero-2-w")
    assert threads == [1, 1]
    return place / "whole.edge", text


@pytest.mark.dev
def test_the_bundle_holds_what_was_asked_for(place, whole):
    folder, text = whole
    assert {path.name for path in folder.iterdir()} == {"model.gguf", "manifest.json", "report.html"}
    assert not (place / "whole.edge.work").exists()
    bundle = open_bundle(folder)
    assert bundle.gguf.path.stat().st_size <= 520_000
    shape = bundle.gguf.metadata
    assert (shape["llama.block_count"], shape["llama.vocab_size"]) == (2, 340)
    steps = bundle.manifest["steps"]
    assert [step["name"] for step in steps] == ["trim", "drop_blocks", "narrow", "heal", "quantize"]
    assert all(step["cost"]["kl"] > 0 for step in steps[1:])
    assert len(bundle.manifest["healing"]) > 1
    assert steps[-1]["cost"] == bundle.manifest["cost"]
    assert bundle.manifest["source"]["name"] == "model.gguf"
    assert bundle.manifest["device"]["predicted_peak_bytes"] <= bundle.manifest["device"]["budget_bytes"]
    assert "perplexity" in text
    assert str(place) not in json.dumps(bundle.manifest)


@pytest.mark.dev
def test_the_bundle_is_planned_for_trained_and_served(place, whole):
    folder, _ = whole
    assert json.loads(run("plan", folder, "--max-length", 64, "--json"))["peak_bytes"] > 0
    record = json.loads(run("train", folder, place / "rows.jsonl", "-o", place / "adapter", "--steps", 8, "--rank", 4,
                            "--max-length", 64, "--threads", 1, "--json"))
    assert record["steps"] == 8
    losses = [line["loss"] for line in metrics(place / "adapter") if line["event"] == "step"]
    assert losses[-1] < losses[0]
    answer = json.loads(run("generate", folder, "turn the light", "--adapter", place / "adapter", "--max-tokens", 8,
                            "--json"))
    assert answer["prompt"] == "turn the light"


ALL = {"vocab": 340, "drop_blocks": 1, "width": 0.75, "steps": 4, "distill_length": 64, "distill_batch": 2,
       "target_size": "520K", "device": "raspberry-pi-zero-2-w"}
SMALL = {"measure_tokens": 512, "calibrate_tokens": 1024, "threads": 1}
KILLED = """
import json, os, signal, sys
from pathlib import Path
from edgetune.compress import pipeline
from edgetune.compress.options import CompressConfig

source, out, options, moment = sys.argv[1:]

def progress(what, done, total):
    print(what, flush=True)
    if what == moment and (done or total == 1):
        os.kill(os.getpid(), signal.SIGKILL)

pipeline.compress(source, Path(out), CompressConfig(**json.loads(options)), on_progress=progress)
"""


def whole_config(place):
    rows = str(place / "rows.jsonl")
    return CompressConfig(calibrate=rows, vocab_from=rows, distill=rows, **SMALL, **ALL)


def killed(place, out, config, moment):
    """What it said that it did, until it was killed while it did `moment`."""
    args = [str(place / "model.gguf"), str(out), json.dumps(config.to_json()), moment]
    done = subprocess.run([sys.executable, "-c", KILLED, *args], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, moment
    return done.stdout.split("\n")


@pytest.mark.slow  # a minute, many where other programs compute
@pytest.mark.timeout(3600)
def test_killed_at_every_step_it_continues_to_the_same_bytes(place, whole):
    out = place / "killed.edge"
    moments = ["trimming the vocabulary", "measuring", "choosing blocks", "fitting blocks", "distilling", "importance",
               "sensitivity", "trying formats", "quantizing", "answering"]
    for i, moment in enumerate(moments):
        said = killed(place, out, whole_config(place), moment)
        ended = set(moments[2:max(i - 1, 2)])  # before the kill that came before this one
        if moment == "quantizing":  # what sensitivity gave is kept with the formats that were being tried
            ended -= {"sensitivity"}
        assert not (ended - {"fitting blocks", "distilling"}) & set(said), moment
        assert not out.exists()
    said = []
    compression.compress(str(place / "model.gguf"), out, whole_config(place),
                         on_progress=lambda what, _done, _total: said.append(what))
    assert set(said) == {"trimming the vocabulary", "answering"}
    assert hashes(out) == hashes(whole[0])
    assert not (place / "killed.edge.work").exists()


@pytest.mark.dev
def test_killed_when_the_bundle_is_there_it_leaves_its_work_until_the_same_command(tmp_path, place):
    out = tmp_path / "made.edge"
    with killed_before_removing(tmp_path / "made.edge.work", out):
        compress(place, out, "--type", "Q8_0")
    made = hashes(out)
    assert "made.edge exists; name another or remove it" in compress(place, out, "--type", "Q8_0", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["made.edge"]
    assert hashes(out) == made


@pytest.mark.slow
def test_stopped_late_it_continues_by_the_same_command_and_by_no_other(place, whole):
    """Stopped while it quantizes: all before that is kept, and not done again."""
    out = place / "stopped.edge"
    source = str(place / "model.gguf")
    said = []

    def progress(what, _done, _total):
        said.append(what)

    with pytest.raises(Interrupted, match="the same command continues"):
        compression.compress(source, out, whole_config(place), on_progress=progress,
                             should_stop=lambda: "quantizing" in said)
    assert not out.exists()
    assert not list(place.glob("stopped.edge.*.tmp"))
    assert "--vocab is not what it was" in compress(place, "stopped.edge", code=2)
    done = set(said)
    said.clear()
    compression.compress(source, out, whole_config(place), on_progress=progress, resume=True)
    kept = {"choosing blocks", "fitting blocks", "importance", "sensitivity", "trying formats"}
    assert done >= kept
    assert not (kept | {"distilling"}) & set(said)
    assert hashes(out) == hashes(whole[0])
    assert not (place / "stopped.edge.work").exists()
    assert "holds no run to continue" in compress(place, "never.edge", "--resume", code=2)


@pytest.mark.slow
def test_stopped_it_continues_with_the_same_text_alone(place, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text((place / "rows.jsonl").read_text())
    config = CompressConfig(calibrate=str(text), type="Q8_0", **SMALL)
    said = []

    def compressed(name, should_stop):
        said.clear()
        compression.compress(str(place / "model.gguf"), tmp_path / name, config, should_stop=should_stop,
                             on_progress=lambda what, _done, _total: said.append(what), on_estimate=estimates.append)

    estimates = []
    with pytest.raises(Interrupted, match="the same command continues"):
        compressed("stopped.edge", lambda: "measuring" in said)
    assert {"importance", "quantizing"} < set(said)
    text.write_text(text.read_text().replace("light", "lamp"))
    with pytest.raises(UsageError, match="the text of --calibrate is not what it was"):
        compressed("stopped.edge", never)
    text.write_text(text.read_text().replace("lamp", "light"))
    compressed("stopped.edge", never)
    assert set(said) == {"measuring", "answering"}
    compressed("undisturbed.edge", never)
    assert hashes(tmp_path / "stopped.edge") == hashes(tmp_path / "undisturbed.edge")
    assert not list(tmp_path.glob("*.work"))
    first, left, whole = ([what for what, _ in steps] for steps in estimates)
    assert first == whole == ["importance", "quantizing", "measuring", "answering"]
    assert left == ["measuring", "answering"]
    assert all(0 < seconds < 60 for steps in estimates for _, seconds in steps)


def test_the_report_shows_questions_and_no_markup_of_the_template(whole):
    page = (whole[0] / "report.html").read_text()
    assert "&lt;|im_start|&gt;" not in page
    assert "{&#39;" not in page


def test_stopped_before_anything_is_measured_nothing_is_left(place):
    config = CompressConfig(calibrate=str(place / "rows.jsonl"), drop_blocks=1)
    with pytest.raises(Interrupted):
        compression.compress(str(place / "model.gguf"), place / "nothing.edge", config, should_stop=lambda: True)
    assert not list(place.glob("nothing*"))


def test_a_stock_type_without_text_is_not_measured_and_says_so(place):
    text = compress(place, "stock.edge", "--type", "Q8_0", text=None)
    assert "not measured" in text
    assert open_bundle(place / "stock.edge").manifest["cost"] is None


@pytest.mark.dev
def test_onnx_answers_on_the_device(place):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("optimum.exporters.onnx")
    compress(place, "onnx.edge", "--format", "onnx")
    assert {path.name for path in (place / "onnx.edge").iterdir()} == {"model.onnx", "tokenizer.gguf",
                                                                       "manifest.json", "report.html"}
    answer = json.loads(run("generate", place / "onnx.edge", "turn", "--max-tokens", 4, "--json"))
    assert answer["prompt"] == "turn"
    assert "edgetune generate" in run("train", place / "onnx.edge", place / "rows.jsonl", "-o", place / "no", code=1)


def test_a_signed_bundle_is_opened_and_a_changed_one_is_not(place):
    keys = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives import serialization
    secret = keys.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (place / "key.pem").write_bytes(secret)
    compress(place, "signed.edge", "--type", "Q8_0", "--sign", place / "key.pem", text=None)
    folder = place / "signed.edge"
    assert {path.name for path in folder.iterdir()} == {"model.gguf", "manifest.json", "manifest.sig", "report.html"}
    assert "signed" in run("models", "info", folder)
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"model.gguf", b"model.gguv", 1))
    assert "signature" in run("plan", folder, code=1)


def test_a_model_that_memory_cannot_hold_is_refused_before_it_is_read(place, monkeypatch):
    monkeypatch.setattr(room, "read_device", lambda: replace(read_device(), memory_available=1 << 20))
    assert "1 MiB are available" in compress(place, "large.edge", code=1)
    assert not list(place.glob("large*"))


@pytest.mark.parametrize(("args", "said"), [
    (["--target-size", "10K"], "at least 2"), (["--target-size", "8x"], "80M"), (["--type", "Q9_Z"], "Q9_Z"),
    (["--vocab", 300], "--vocab-from"), (["--type", "Q8_0", "--target-size", "1M"], "--target-size"),
    (["--drop-blocks", 3], "drop"), (["--steps", 4], "--distill"), (["--distill-lr", 0.1], "--distill"),
    (["--distill-rank", 4], "--distill"), (["--distill-length", 64], "--distill"),
    (["--distill-batch", 2], "--distill"), (["--device", "toaster"], "toaster")])
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(place, args, said):
    result = CliRunner().invoke(cli, ["compress", str(place / "model.gguf"), "-o", str(place / "bad.edge"),
                                      "--calibrate", str(place / "rows.jsonl"), *map(str, args)])
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert result.output.count("\n") == 1 or "Usage" not in result.output
    assert not list(place.glob("bad*"))


def test_without_the_extra_it_says_what_to_install(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "edgetune.compress.pipeline", None)
    assert "make install EXTRAS=host, into a fresh environment" in compress(place, "x.edge", code=2)


@pytest.mark.dev
@pytest.mark.parametrize("args", [(), ("--type", "F16"), ("--drop-blocks", 1)])
def test_the_room_that_is_asked_for_is_enough_and_not_far_too_much(place, tmp_path, monkeypatch, args):
    """What the work folder and the bundle hold when all is made, by what was said before."""
    asked = []
    monkeypatch.setattr(room, "require_room", lambda folder, nbytes: asked.append((folder, nbytes)))
    sizes = []
    copied = compression.copy_files

    def copying(folder, to):
        copied(folder, to)
        files = [path for top in (asked[0][0], to) for path in top.rglob("*") if path.is_file()]
        sizes.append(sum(path.stat().st_size for path in files))

    monkeypatch.setattr(compression, "copy_files", copying)
    compress(place, tmp_path / "new.edge", *args)
    assert sizes[0] <= asked[0][1] + (1 << 20)  # what is no weight, as the vocabulary, aside
    assert asked[0][1] < 4 * sizes[0]


class NoOptimum:
    """Where Python looks for modules: one that finds an optimum that does not work with this transformers."""

    def __init__(self):
        self.asked = []

    def find_spec(self, name, *_):
        if name.startswith("optimum."):
            self.asked.append(name)
            raise ImportError("cannot import name 'get_parameter_dtype' from 'transformers.modeling_utils'")


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_what_onnx_needs_is_imported_for_onnx_alone(place, tmp_path, monkeypatch, form):
    """optimum does not work with every transformers; a GGUF needs neither it nor ONNX Runtime."""
    if form == "onnx":
        pytest.importorskip("optimum")
    broken = NoOptimum()
    monkeypatch.setattr(sys, "meta_path", [broken, *sys.meta_path])
    for name in [name for name in sys.modules if name.startswith(("optimum.", "edgetune.compress.onnx."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("edgetune.compress.onnx.export", raising=False)
    said = compress(place, tmp_path / "new.edge", "--format", form, text="--calibrate" if form == "onnx" else None,
                    code=0 if form == "gguf" else 2)
    assert (tmp_path / "new.edge").exists() == (form == "gguf")
    assert ("get_parameter_dtype" in said) == bool(broken.asked) == (form == "onnx")
