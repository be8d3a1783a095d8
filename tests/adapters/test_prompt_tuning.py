"""Prompt tuning: gradients of PEFT, a start of real tokens, and llama.cpp's answers beside our own engine's."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from batchers import opened, started
from commands import run as command
from decoder_cases import LIMIT, distance, make_case, make_decoder, train_once
from json_lines import write_lines
from peft import PromptTuningConfig, get_peft_model
from random_adapters import decided_prompts, tokens_of

from edgetune import Result
from edgetune.adapters.base import Artifact, Setting
from edgetune.adapters.prefix import Prefix
from edgetune.adapters.prompt_tuning import PromptTuning
from edgetune.adapters.store import read_artifact, read_run, save_artifact
from edgetune.daemon.jobs import recipe
from edgetune.data.packing import Example, collate
from edgetune.errors import MismatchError, UnsupportedError, UsageError
from edgetune.formats.gguf import open_gguf
from edgetune.formats.shape import read_shape
from edgetune.serving.llama import LlamaModel
from edgetune.serving.rollouts.forward import open_decoder
from edgetune.training.config import TrainConfig
from edgetune.training.trainer import Trainer

P = 5
OPTIONS = ("--family", "prefix", "--lr", 0.1, "--threads", 1, "--anchors", 0, "--precision", "exact", "--no-answers")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_log_p_and_gradient_are_those_of_peft(architecture, tmp_path):
    case = make_case(architecture, tmp_path)
    decoder = make_decoder(case.decoder.model, replace(case.decoder.run, family=PromptTuning(prompt_tokens=P)))
    values = decoder.adapter.values["input"]
    values += np.random.default_rng(4).standard_normal(values.shape).astype(np.float32) / 4
    tuned = get_peft_model(case.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P))
    weight = tuned.prompt_encoder["default"].embedding.weight
    weight.data[:] = torch.from_numpy(values)
    expected = []
    for example in case.examples:
        tokens = torch.from_numpy(example.tokens).long()
        logits = tuned(input_ids=tokens[None], attention_mask=torch.ones_like(tokens)[None]).logits[0, P:]
        logp = torch.log_softmax(logits[:-1], -1).gather(1, tokens[1:, None])[:, 0]
        weights = torch.from_numpy(example.weights[1:])
        expected.append(logp[weights != 0].detach().numpy())
        (-(weights * logp).sum()).backward()
    assert distance(train_once(replace(case, decoder=decoder)), np.concatenate(expected)) < LIMIT
    assert distance(decoder.adapter.gradients["input"], weight.grad.numpy()) < LIMIT


@pytest.fixture(params=["llama", "qwen2", "qwen3", "gemma3"])
def model(request, tiny_models):
    return tiny_models[request.param]


def made(model, seed, size=P):
    """An adapter of random embeddings."""
    shape = read_shape(open_gguf(model))
    rows = np.random.default_rng(seed).standard_normal((size, shape.d_model)).astype(np.float32)
    return Artifact(tensors={"input": rows}, family=PromptTuning.name,
                    setting=Setting(PromptTuning(prompt_tokens=size).options(), [], [0, shape.n_layer]))


def saved(model, path, seed=0, size=P):
    save_artifact(path, made(model, seed, size), open_gguf(model))
    return path


def test_llama_cpp_has_the_logits_of_our_own_engine(model, tmp_path):
    tokens = tokens_of(40, 1)
    decoder = open_decoder(open_gguf(model), made(model, 0), threads=1, max_tokens=128, max_length=128)
    expected = decoder.logits(collate([Example(np.array(tokens, np.int32), np.ones(40, np.float32))]))
    with LlamaModel(model, context=128) as served:
        base = served.logits(tokens)
        served.load_adapter(saved(model, tmp_path / "a.gguf"), "a")
        served.use("a")
        assert distance(served.logits(tokens), expected) < 3e-3  # keys are half floats there
        assert distance(served.logits(tokens), base) > 0.1
        assert served.context == 128 - P


def test_it_begins_as_a_text(model):
    """So that it is as if the model had read it: llama.cpp with these tokens before, repeated and cut."""
    with LlamaModel(model, context=128) as served:
        text = served.tokenizer.encode("lamp on")
        count = len(text) + 2
        expected = served.logits([*text, *text[:2], *tokens_of(20)])[count:]
    trainer = Trainer(model, family=PromptTuning(prompt_tokens=count, prompt_text="lamp on"), max_length=24, threads=1,
                      precision="exact")
    found = trainer.decoder.logits(collate([Example(np.array(tokens_of(20), np.int32), np.ones(20, np.float32))]))
    assert distance(found, expected) < 3e-3


def test_it_begins_with_rows_of_the_vocabulary(model):
    table = open_gguf(model).tensors["token_embd.weight"].f32() * read_shape(open_gguf(model)).embed_scale
    starts = [Trainer(model, family=PromptTuning(), seed=seed, max_length=24).decoder.adapter.values["input"].copy()
              for seed in (0, 0, 1)]
    assert all(np.abs(table - row).max(1).min() < 1e-5 for start in starts for row in start)
    np.testing.assert_array_equal(starts[0], starts[1])
    assert distance(starts[0], starts[2]) > 0.1


def test_requests_of_several_adapters_at_once(tiny_llama, tmp_path):
    files = {"a": saved(tiny_llama, tmp_path / "a.gguf"), "b": saved(tiny_llama, tmp_path / "b.gguf", 1, 20)}
    with opened(tiny_llama, files, 256) as served:
        rows = []
        for adapter in (None, *files):
            served.use(adapter)
            for prompt in decided_prompts(served, [14, 33], 8, tokens_of(9)):
                served.reset()
                rows.append((adapter, prompt, "".join(served.generate(prompt, max_tokens=8))))
        served.use(None)
        with started(served) as batcher:
            found = [batcher.submit(prompt, adapter=name, max_tokens=8) for name, prompt, _ in rows]
            assert [each.text() for each in found] == [text for *_, text in rows]


def test_commands_train_and_serve_it(bundle, tmp_path):
    """By llama.cpp, with the loss that our engine measured; a Modelfile or a merged file cannot hold it."""
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": "on", "completion": "off"}] * 4)
    out = tmp_path / "out"
    said = command("train", bundle.path, rows, "-o", out, "--family", "prompt-tuning", "--prompt-tokens", 3,
                   "--prompt-text", "off", "--steps", 12, "--lr", 0.1, "--eval", rows, "--threads", 1, "--anchors", 0,
                   "--precision", "exact", "--no-answers")
    assert said.endswith(f"try: edgetune chat {bundle.path} --adapter {out}\n")
    losses = [json.loads(command("eval", bundle.path, rows, *more, "--no-answers", "--json"))["loss"]
              for more in (("--adapter", out), ("--adapter", out, "--engine", "native"), ())]
    assert losses[0] == pytest.approx(Result(out, read_run(out)).loss_after, rel=5e-3)
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert losses[0] < losses[2]
    for refused in (("merge", bundle.path, out, "-o", tmp_path / "merged.gguf"),
                    ("export", out, "--to", "ollama", "-o", tmp_path / "ollama")):
        assert re.search("family prompt-tuning, which is no LoRA", command(*refused, code=UnsupportedError.exit_code))
    assert recipe.options(TrainConfig(), {"family": "prompt-tuning"}).family.virtual_tokens == 16


def test_values_that_do_not_fit_are_refused(tiny_llama, tmp_path):
    for change in (lambda rows: rows[:, :-2], lambda rows: rows[:-1]):
        artifact = made(tiny_llama, 0)
        artifact.tensors["input"] = change(artifact.tensors["input"])
        save_artifact(tmp_path / "a.gguf", artifact, open_gguf(tiny_llama))
        with LlamaModel(tiny_llama, context=64) as served, pytest.raises(MismatchError, match="--prompt-tokens"):
            served.load_adapter(tmp_path / "a.gguf", "a")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("rows") / "rows.jsonl", [{"prompt": "on", "completion": "off"}] * 4)


@pytest.fixture(scope="module")
def trained(bundle, rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("prefix") / "out"
    said = command("train", bundle.path, rows, "-o", out, *OPTIONS, "--prefix-tokens", 3, "--steps", 12, "--eval", rows)
    assert said.endswith(f"try: edgetune chat {bundle.path} --adapter {out}\n")
    return out


def loss(bundle, rows, *more):
    return json.loads(command("eval", bundle.path, rows, *more, "--no-answers", "--json"))["loss"]


def test_llama_cpp_serves_it(bundle, rows, trained):
    """With the loss that our engine measured; a Modelfile or a merged file cannot hold it."""
    found = loss(bundle, rows, "--adapter", trained)
    assert found == pytest.approx(Result(trained, read_run(trained)).loss_after, rel=5e-3)
    assert found == pytest.approx(loss(bundle, rows, "--adapter", trained, "--engine", "native"), rel=5e-3)
    assert found < loss(bundle, rows) - 1
    assert command("generate", bundle.path, "on", "--adapter", trained, "--max-tokens", 3)
    assert "prefix" in command("models", "info", trained)
    for refused in (("merge", bundle.path, trained, "-o", "merged.gguf"),
                    ("export", trained, "--to", "ollama", "-o", "ollama")):
        said = command(*refused, code=UnsupportedError.exit_code)
        assert re.search("family prefix, which is no LoRA", said)


def test_training_begins_with_a_compiled_prompt(bundle, rows, tmp_path):
    """Its keys are a start as good as the prompt itself. Fewer tokens are its first ones; more are refused."""
    (tmp_path / "system.txt").write_text("off off off")
    tokens = json.loads(command("lab", "compile-prompt", bundle.path, tmp_path / "system.txt", "-o",
                                tmp_path / "system",
                                "--json"))["tokens"]
    begun = ("train", bundle.path, rows, *OPTIONS, "--steps", 12, "--eval", rows, "--start", tmp_path / "system")
    command(*begun, "-o", tmp_path / "out")
    assert read_run(tmp_path / "out")["options"]["prefix_tokens"] == tokens
    assert loss(bundle, rows, "--adapter", tmp_path / "out") < loss(bundle, rows) / 2
    said = command(*begun, "-o", tmp_path / "other", "--prefix-tokens", tokens + 1, code=MismatchError.exit_code)
    assert "--prefix-tokens" in said
    trainer = Trainer(bundle, family=Prefix(prefix_tokens=2), max_length=24, threads=1)
    trainer.load(tmp_path / "system")
    whole = read_artifact(tmp_path / "system", bundle.gguf).tensors
    for name, array in trainer.artifact().tensors.items():
        np.testing.assert_array_equal(array, whole[name][:, :2])


def test_options_out_of_range_are_refused(bundle, rows, tmp_path):
    for option, value in (("--prefix-tokens", 0), ("--blocks", "last:1")):
        command("train", bundle.path, rows, "-o", tmp_path / "out", *OPTIONS, option, value, code=UsageError.exit_code)
    assert not (tmp_path / "out").exists()
