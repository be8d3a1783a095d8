"""PEFT's folders out and in, judged by PEFT on transformers on one side and llama.cpp on the other."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from commands import run as command
from families import ALL_FAMILIES, hf_logits, logits_of, make_family
from full_disks import full_disk
from huggingface_hub import ModelCard
from random_adapters import distance, random_updates
from small_families import small, trained
from tiny import write_tiny

from edgetune.adapters.lora import Pair
from edgetune.adapters.peft import export_peft, import_peft
from edgetune.adapters.peft_modules import join_fused
from edgetune.adapters.published import model_card, public_record
from edgetune.adapters.store import save_gguf
from edgetune.data.packing import Example, collate
from edgetune.errors import EdgetuneError, FormatError, MismatchError, UnsupportedError, UsageError
from edgetune.formats.families import OTHER_TARGETS, TARGETS
from edgetune.formats.gguf import open_gguf
from edgetune.formats.safetensors import read_safetensors, write_safetensors
from edgetune.formats.shape import read_shape

TOKENS = np.random.default_rng(3).integers(0, 400, size=40).tolist()
RUN = {
    "edgetune": "0.1.0", "steps": 4, "seed": 0, "options": {"rank": 8, "lr": 1e-3, "system": "a | b\n# no heading"},
    "objective": {"name": "sft"}, "origin": {"data": "/home/me/rows.jsonl"},
    "base": {"name": "m.gguf", "path": "/home/me/m.gguf", "fingerprint": "sha256:00", "architecture": "llama"},
    "data": {"rows": 20, "tokens": 764, "supervised": 272},
    "held_out": {"rows": 4, "loss_before": 2.5, "loss_after": 0.9},
    "verdict": {"kind": "still falling", "sentence": "edgetune resume /home/me/out", "step": 4},
    "answers": {"rows": 4, "before": 0.0, "after": 0.75, "pairs": [{"prompt": "my secret"}]},
}


def same(a, b):
    return sorted(a) == sorted(b) and all(
        np.array_equal(a[n].a, b[n].a) and np.array_equal(a[n].b, b[n].b) and a[n].scale == b[n].scale for n in a)


EVERY = [f"blk.{i}.{name}" for i in range(3) for name in TARGETS.values()]


def every_projection(base):
    """As many names as EVERY, or those of the model's other projections."""
    shape = read_shape(base)
    return [f"blk.{i}.{name}" for i in range(shape.n_layer) for name in shape.linear_shapes(i)]


# Projections of a family in place of those of most.
NO_EXPERTS = {"mlp.down_proj": "self_attn.o_proj", "gate_proj": "o_proj", "up_proj": "o_proj", "down_proj": "o_proj"}
SHARED_MLP = {"mlp.down_proj": "shared_mlp.output_linear", "down_proj": "output_linear", "gate_proj": "input_linear",
              "up_proj": "input_linear"}
SHARED_EXPERT = {name: f"shared_mlp.{module.removeprefix('shared_mlp.')}" for name, module in SHARED_MLP.items()}
MAMBA = {"q_proj": "in_proj", "v_proj": "out_proj"}
OTHER_NAMES = {"lfm2": {"mlp.down_proj": "feed_forward.w2", "down_proj": "w2", "v_proj": "w3"},
               **dict.fromkeys(("qwen3moe", "olmoe", "granitemoe"), NO_EXPERTS),
               "qwen35": {"v_proj": "in_proj_z", "q_proj": "in_proj_qkv"},
               "granitehybrid": SHARED_MLP | MAMBA, "granitehybridmoe": SHARED_EXPERT | MAMBA,
               "granitemoeshared": SHARED_EXPERT,
               "phi3": {"v_proj": "gate_up_proj", "q_proj": "qkv_proj", "k_proj": "o_proj"}}
SCALED = ("granite", "granitemoe", "granitemoeshared", "granitehybrid", "granitehybridmoe")
# whose sublayers add a fifth of their output to the residual stream
SOME = ["blk.0.attn_q", "blk.2.attn_q", "blk.2.attn_k", "blk.1.ffn_down"]


# ---- equal logits ----------------------------------------------------------------------------------------------------


@pytest.mark.dev
@pytest.mark.parametrize(
    ("family", "names", "ranks", "scales"),
    [(family, EVERY, [4], [2.0]) for family in ALL_FAMILIES]
    + [(family, EVERY, [2, 3, 8], [0.5, 2.0]) for family in ALL_FAMILIES]
    + [("llama", SOME, [4], [2.0]), ("llama", SOME, [2, 5], [1.0, 3.0]), ("gemma3", SOME, [4], [2.0])],
)
def test_export_gives_peft_the_same_logits(family, names, ranks, scales, tmp_path):
    path, model = make_family(family, tmp_path)
    base = open_gguf(path)
    names = names if names is not EVERY else every_projection(base)
    pairs = random_updates(base, names, ranks, scales, size=0.5)
    plain = hf_logits(model, TOKENS)
    save_gguf(tmp_path / "a.gguf", pairs, base)
    export_peft(pairs, base, tmp_path / "peft")
    written = {path.name for path in (tmp_path / "peft").iterdir()}
    assert written == {"README.md", "adapter_config.json", "adapter_model.safetensors"}

    tuned = peft.PeftModel.from_pretrained(model, tmp_path / "peft")
    joined = join_fused(pairs, read_shape(base))
    assert sum("lora_A" in name for name, _ in tuned.named_parameters()) == len(joined)
    truth = hf_logits(tuned, TOKENS)
    least = 0.05 if family in SCALED else 0.1
    assert distance(truth, plain) > least, "an adapter that changes nothing proves nothing"
    assert distance(logits_of(path, TOKENS, tmp_path / "a.gguf"), truth) < 1e-3
    again = import_peft(tmp_path / "peft", base)
    assert again.keys() == pairs.keys()
    assert same(join_fused(again, read_shape(base)), joined)


@pytest.mark.parametrize(("architecture", "name"), [
    ("llama", "prefix"), ("qwen3", "prefix"), ("gemma3", "prefix"), ("llama", "prompt-tuning"),
    ("gemma3", "prompt-tuning")])
def test_a_prefix_is_prefix_tuning_in_peft(architecture, name, tmp_path):
    """PEFT's logits with it are llama.cpp's and our own engine's, which rotate keys in another order."""
    path, model = make_family(architecture, tmp_path)
    trainer = trained(path, small(name), lr=0.1, max_length=64)
    trainer.save(tmp_path / "prefix")
    command("adapters", "export", tmp_path / "prefix", "--base", path, "-o", tmp_path / "peft")
    ours = trainer.decoder.logits(collate([Example(np.array(TOKENS, np.int32), np.ones(len(TOKENS), np.float32))]))
    tuned = peft.PeftModel.from_pretrained(model, tmp_path / "peft")
    truth = hf_logits(tuned, TOKENS)
    assert distance(ours, truth) < 1e-4
    assert distance(hf_logits(model, TOKENS), truth) > 0.1, "a prefix that changes nothing proves nothing"


def test_auto_peft_model_finds_the_base(tmp_path):
    """It loads what the adapter names as its base, here a folder."""
    path, model = make_family("llama", tmp_path)
    base = open_gguf(path)
    model.save_pretrained(tmp_path / "base")
    pairs = random_updates(base, EVERY, size=0.5)
    export_peft(pairs, base, tmp_path / "peft", str(tmp_path / "base"))
    truth = hf_logits(peft.PeftModel.from_pretrained(model, tmp_path / "peft"), TOKENS)
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft")
    assert distance(hf_logits(found, TOKENS), truth) < 1e-5


@pytest.mark.parametrize(("keys", "name"), [
    ({}, "tiny.gguf"),
    ({"general.name": "Tiny 1M"}, "Tiny 1M"),
    ({"general.name": "Tiny 1M", "general.base_model.0.name": "Tiny"}, "Tiny"),
    ({"general.base_model.0.name": "Tiny", "general.base_model.0.repo_url": "https://huggingface.co/maker/tiny"},
     "maker/tiny"),
    ({"general.base_model.0.repo_url": "https://huggingface.co/maker/old",
      "general.source.huggingface.repository": "maker/tiny"}, "maker/tiny"),
])
def test_the_base_is_named_as_the_gguf_does(keys, name, tmp_path):
    base = open_gguf(write_tiny(tmp_path / "tiny.gguf", metadata={"general.name": ""} | keys))
    export_peft(random_updates(base, ["blk.0.attn_q"]), base, tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == name


@pytest.mark.dev
@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("options", [
    {"r": 4, "lora_alpha": 12, "target_modules": [*TARGETS, *OTHER_TARGETS]},
    {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"},
    {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2]},
    {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.k_proj": 6},
        "alpha_pattern": {"^model.layers.0.mlp.down_proj": 32, "self_attn.k_proj": 4},
    },
])
def test_import_gives_the_logits_of_peft(family, options, tmp_path):
    path, model = make_family(family, tmp_path)
    named = json.dumps(options)
    for name, other in OTHER_NAMES.get(family, {}).items():
        named = named.replace(name, other)
    tuned = trained_by_peft(model, tmp_path / "peft", **json.loads(named))
    truth = hf_logits(tuned, TOKENS)
    is_more = family in ("qwen35", "gemma4", "granitehybridmoe", "granitemoeshared") or (
        OTHER_NAMES.get(family) is NO_EXPERTS)  # than adapters here change
    if is_more and options["target_modules"] == "all-linear":
        with pytest.raises(UnsupportedError, match="edgetune imports LoRA on"):
            import_peft(tmp_path / "peft", open_gguf(path))
        return
    pairs = import_peft(tmp_path / "peft", open_gguf(path))
    save_gguf(tmp_path / "a.gguf", pairs, open_gguf(path))
    assert distance(logits_of(path, TOKENS, tmp_path / "a.gguf"), truth) < 1e-3
    with tuned.disable_adapter():
        assert distance(truth, hf_logits(tuned, TOKENS)) > (0.02 if family in SCALED else 0.1)


def trained_by_peft(model, folder, **options: Any):
    """A LoRA with random A and B, saved."""
    torch.manual_seed(0)
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    tuned.create_or_update_model_card = lambda *_: None  # a page for people, whose template takes longer than the rest
    tuned.save_pretrained(folder)
    return tuned


def test_import_in_half_precision(tmp_path):
    path, model = make_family("llama", tmp_path)
    trained_by_peft(model, tmp_path / "peft", r=4, target_modules=["q_proj"])
    file = tmp_path / "peft" / "adapter_model.safetensors"
    whole = import_peft(tmp_path / "peft", open_gguf(path))
    tensors = safetensors.torch.load_file(file)
    for dtype, error in ((torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        safetensors.torch.save_file({name: t.to(dtype) for name, t in tensors.items()}, file)
        halves = import_peft(tmp_path / "peft", open_gguf(path))
        assert all(distance(halves[n].b, whole[n].b) < error for n in whole)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return open_gguf(make_family("llama", tmp_path_factory.mktemp("llama"))[0])


@pytest.fixture
def folder(llama, tmp_path):
    export_peft(random_updates(llama, SOME), llama, tmp_path / "peft")
    return tmp_path / "peft"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bias": "all"}, "bias"), ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"), ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"), ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"alpha_pattern": {"(a+)+$": 4}}, "alpha_pattern")],
)
def test_options_that_a_gguf_cannot_express(options, named, llama, folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | options))
    with pytest.raises(UnsupportedError) as caught:
        import_peft(folder, llama)
    assert named in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 5}, "has rank 4, its adapter_config.json says 5"), ({"r": "4"}, "r is '4'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is 'nan'"), ({"lora_alpha": None}, "lora_alpha is 'None'"),
        ({"alpha_pattern": [1]}, "alpha_pattern"), ({"r": 10**400}, "r is '1000.*a number up to 1e"),
        ({"lora_alpha": 1e308}, "lora_alpha is .*a number up to 1e"), ({"lora_alpha": 1e14}, "scales its update by")],
)
def test_numbers_that_cannot_be_applied(options, message, llama, folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | options))
    with pytest.raises(FormatError, match=message):
        import_peft(folder, llama)


ONES = np.ones((4, 64), np.float32)
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": ONES}), UnsupportedError, "lm_head"),
    (lambda t: t.update({f"{Q0}.lora_magnitude_vector": ONES}), UnsupportedError, "lora_magnitude_vector"),
    (lambda t: t.update({Q0.replace("model.model", "model.vision_tower") + ".lora_A.weight": ONES}),
     UnsupportedError, "vision_tower"),
    (lambda t: t.update({Q0.replace("q_proj", "qkv_proj") + ".lora_A.weight": ONES}), UnsupportedError, "qkv_proj"),
    (lambda t: t.update({f"{Q0}.lora_A.weight": ONES[0]}), UnsupportedError, r"shape \[64\]"),
    (lambda t: t.pop(f"{Q0}.lora_B.weight"), FormatError, "holds lora_A .* for model.layers.0.self_attn.q_proj"),
    (lambda t: t.update({f"{Q0}.lora_A.weight": ONES[:3]}), FormatError, "needs lora_A"),
    (lambda t: t.update({f"{Q0}.lora_A.weight": ONES * np.nan}), FormatError, "not finite"),
    (lambda t: t.update({f"{Q0}.lora_A.weight": np.ones((4, 65), np.float32)}), MismatchError, r"\[64, 65\]"),
    (lambda t: t.update({key.replace("layers.0", "layers.7"): t.pop(key) for key in list(t) if Q0 in key}),
     MismatchError, "blk.7.attn_q .* has no such tensor"),
    (lambda t: t.clear(), FormatError, "no tensors"),
])
def test_tensors_that_are_no_pairs_are_refused(change, error, message, llama, folder):
    tensors = read_safetensors(folder / "adapter_model.safetensors")
    change(tensors)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(error, match=message):
        import_peft(folder, llama)


def test_missing_and_damaged_files(llama, folder):
    config = (folder / "adapter_config.json").read_text()
    for text in ("{", "3", "[" * 100_000, config[:-9]):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(FormatError, match=r"adapter_config.json is not"):
            import_peft(folder, llama)
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UnsupportedError, match="a pickle, which can run code"):
        import_peft(folder, llama)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FormatError, match="No such file"):
        import_peft(folder, llama)
    with pytest.raises(FormatError, match=r"cannot read .*nowhere.*adapter_config.json"):
        import_peft(folder / "nowhere", llama)


def test_export_refuses(llama, folder):
    with pytest.raises(UsageError, match="peft exists"):
        export_peft(random_updates(llama, SOME), llama, folder)
    wide = {"blk.0.attn_q": Pair(np.ones((2, 65), np.float32), np.ones((64, 2), np.float32), 1.0)}
    with pytest.raises(MismatchError, match=r"the adapter changes blk.0.attn_q"):
        export_peft(wide, llama, folder.with_name("new"))
    head = {"output": Pair(np.ones((2, 64), np.float32), np.ones((416, 2), np.float32), 1.0)}
    with pytest.raises(UnsupportedError, match="the adapter changes output"):
        export_peft(head, llama, folder.with_name("new"))
    assert [p.name for p in folder.parent.iterdir()] == ["peft"]


@pytest.mark.parametrize("limit", [100, 2_000])
def test_a_full_disk_leaves_nothing(limit, llama, tmp_path):
    with full_disk(limit), pytest.raises(EdgetuneError, match=r"cannot write .*peft: "):
        export_peft(random_updates(llama, SOME), llama, tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


# ---- safetensors -----------------------------------------------------------------------------------------------------


def test_safetensors_agrees_with_the_package(tmp_path):
    tensors = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y\u00e9": np.zeros((0, 4), np.float32),
               "one": np.float32(3).reshape(())}
    write_safetensors(tmp_path / "ours", tensors)
    theirs = safetensors.torch.load_file(tmp_path / "ours")
    assert theirs.keys() == tensors.keys()
    assert all(np.array_equal(theirs[n].numpy(), tensors[n]) and theirs[n].shape == tensors[n].shape for n in tensors)
    values = torch.tensor([[1.0, -2.5, 3.14159, 65504.0]])
    kinds = {"a": torch.float32, "b": torch.float16, "c": torch.bfloat16}
    safetensors.torch.save_file({n: values.to(kind) for n, kind in kinds.items()}, tmp_path / "theirs")
    ours = read_safetensors(tmp_path / "theirs")
    header = json.loads((tmp_path / "theirs").read_bytes()[8:].partition(b"]}}")[0] + b"]}}")
    header.pop("__metadata__", None)
    assert list(ours) == sorted(header, key=lambda name: header[name]["data_offsets"])  # as they are stored
    assert all(np.array_equal(ours[n], values.to(kind).float().numpy()) for n, kind in kinds.items())


def packed(header, data=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("raw", [b"", packed({"x": tensor()}, length=2**63), packed(b"[" * 100_000), packed([]),
                                 packed({"x": tensor(offsets=[0, 32])})])
def test_safetensors_refuses(raw, tmp_path):
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(FormatError, match=r"x is no safetensors file: .*; the file is damaged"):
        read_safetensors(tmp_path / "x")


def test_other_types_of_tensors_are_named(tmp_path):
    (tmp_path / "x").write_bytes(packed({"x": tensor(dtype="I64", shape=[2])}))
    with pytest.raises(UnsupportedError, match="x is I64; supported are F32, F16, BF16"):
        read_safetensors(tmp_path / "x")


def test_a_rank_of_zero_is_refused(llama, folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 0, "rank_pattern": {}}))
    path = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    write_safetensors(folder / "adapter_model.safetensors", {
        f"{path}A.weight": np.zeros((0, 64), np.float32), f"{path}B.weight": np.zeros((64, 0), np.float32)})
    with pytest.raises(FormatError, match="R >= 1"):
        import_peft(folder, llama)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.timeout(20)
def test_a_pipe_in_the_folder_is_not_waited_for(name, llama, folder):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(FormatError, match="not a regular file"):
        import_peft(folder, llama)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return open_gguf(write_tiny(tmp_path_factory.mktemp("base") / "tiny.gguf"))


def with_metadata(base, **metadata: str):
    """The same file, which says more of itself."""
    return replace(base, metadata={**base.metadata, **{key.replace("__", "."): text for key, text in metadata.items()}})


def test_the_card_is_one(base):
    said = with_metadata(base, general__license="apache-2.0", general__name="HuggingFaceTB/SmolLM2-135M-Instruct")
    card = ModelCard(model_card(RUN, said, "```sh\nedgetune chat\n```"))
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"
    assert card.data.tags == ["lora", "gguf", "edgetune"]
    for line in ("| rows | 20 |", "| loss after | 0.9 |", "| exact after | 75% |", "| rank | 8 |",
                 "| system | a \\| b # no heading |"):
        assert line in card.text, line


def test_names_from_a_file_cannot_write_the_card(base):
    said = with_metadata(base, general__license='mit"\nbase_model: evil/other\n---', general__name="a/b\n---\n# hi")
    card = ModelCard(model_card(RUN, said, "use"))
    assert card.data.license == 'mit"\nbase_model: evil/other\n---'
    assert card.data.base_model == "a/b\n---\n# hi"
    assert "\n# hi" not in card.text


def test_an_imported_adapter_has_a_card_without_tables(base):
    assert "|" not in model_card({}, base, "use")


def test_the_record_tells_nothing_private():
    found = json.dumps(public_record(RUN))
    assert "secret" not in found
    assert "/home" not in found
    assert json.loads(found)["answers"]["after"] == 0.75
    assert json.loads(found)["base"]["name"] == "m.gguf"
