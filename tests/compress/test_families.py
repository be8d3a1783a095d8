"""What compress does to each of the families beside the first four, against transformers and llama.cpp."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

import peft
import torch
from checkpoints import byte_level, edit, write_folder
from families import ARCHITECTURES, FAMILIES, NEWER, TRAINED, hf_logits, logits_of, make_family
from random_adapters import distance, random_updates
from sometimes import mostly_slow
from tiny import SHAPES, write_tiny

from edgetune import Trainer
from edgetune.adapters.merge import merge
from edgetune.adapters.peft import export_peft
from edgetune.cli import cli
from edgetune.compress.options import CompressConfig
from edgetune.compress.shrink import distill, prune
from edgetune.compress.shrink.prune import KeptParts
from edgetune.compress.source import convert, floats
from edgetune.compress.source import huggingface as hf
from edgetune.compress.source.model_types import CONVERTED, TYPES
from edgetune.errors import FormatError, UnsupportedError, UsageError
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import open_gguf, write_gguf
from edgetune.formats.safetensors import read_safetensors, write_safetensors
from edgetune.formats.shape import read_shape
from edgetune.models.structure import feed_of, mixer_of

RNG = np.random.default_rng(0)
TOKENS = [int(token) for token in RNG.integers(0, 400, 60)]
WINDOWS = RNG.integers(0, 416, (12, 48)).astype(np.int32)
FIVE = {"num_hidden_layers": 5}
BLOCKS = {"exaone4": FIVE | {"layer_types": ["full_attention"] * 5},
          "lfm2": FIVE | {"layer_types": ["conv", "full_attention", "conv", "full_attention", "conv"]}}
COMPUTED = [name for name in TRAINED | NEWER
            if hf.computes(ARCHITECTURES.get(name, name)) and name != "mistral3"]  # a llama for transformers 4
STATES = ["granitehybrid", "qwen35"]
MIXTURES = ["qwen3moe", "olmoe", "granitemoe", "granitemoeshared", "granitehybridmoe", "lfm2moe"]


def read(path):
    return floats.read(open_gguf(path))


def agree(model, folder, truth, limit=1e-3):
    """llama.cpp's logits of a model; matrices in F32."""
    path = folder / "made.gguf"
    write_gguf(path, model.architecture, model.metadata, model.tensors, model.types)
    assert truth.std() > 0.05, "flat logits prove nothing"
    assert distance(logits_of(path, TOKENS), truth) < limit
    return path


INTERNLM2 = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
             "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
             "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "model.tok_embeddings", "lm_head": "output"}


def as_internlm2(folder):
    """A llama's folder with the names of an InternLM2, whose code is not in transformers."""
    found = {}
    held = read_safetensors(folder / "model.safetensors")
    for name, values in held.items():
        for theirs, ours in INTERNLM2.items():
            name = name.replace(theirs, ours)
        if ".q_proj" in name:
            q, k, v = (held[name.replace("q_proj", f"{part}_proj")] for part in "qkv")
            heads = []
            for i in range(2):  # two queries a head of keys, of 16 values each
                heads += [q[32 * i:32 * (i + 1)], k[16 * i:16 * (i + 1)], v[16 * i:16 * (i + 1)]]
            found[name.replace("self_attn.q_proj", "attention.wqkv")] = np.concatenate(heads)
        elif not name.split(".")[-2].endswith(("k_proj", "v_proj")):
            found[name] = values
    write_safetensors(folder / "model.safetensors", found)
    edit(folder / "config.json", model_type="internlm2", rope_scaling={"type": "dynamic", "factor": 2.0}, bias=False,
         auto_map={"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"})
    return folder


def folder_of(family, source, folder):
    """What save_pretrained writes of transformers' model of a family."""
    written = write_folder(folder, source, byte_level())
    return as_internlm2(written) if family == "internlm2" else written


@pytest.mark.dev
@pytest.mark.parametrize("family", [*COMPUTED, *MIXTURES, *STATES, "gemma4"])
def test_a_checkpoint_becomes_a_gguf_with_its_logits(family, tmp_path):
    path, source = make_family(family, tmp_path)
    made = convert.convert(folder_of(family, source, tmp_path / "model"))
    agree(made, tmp_path, hf_logits(source, TOKENS))
    assert made.tensors.keys() == open_gguf(path).tensors.keys()
    f16 = tmp_path / "f16.gguf"
    floats.write(f16, made)
    kept = {name for name, tensor in open_gguf(f16).tensors.items() if tensor.format == "F32" and len(tensor.shape) > 1}
    assert all(name.endswith(("conv.weight", "ffn_gate_inp.weight")) or ".ssm_" in name for name in kept)
    trainer = Trainer(f16, rank=2, max_length=32, steps=1, batch_size=1, threads=1)
    trainer.add([{"text": "turn on the lamp, please"}])
    assert np.isfinite(trainer.step().loss)


@pytest.mark.dev
@pytest.mark.parametrize("family", COMPUTED)
def test_transformers_computes_a_gguf_and_gives_its_weights_back(family, tmp_path):
    path, source = make_family(family, tmp_path)
    model = read(path)
    built = hf.to_torch(model)
    assert np.abs(hf_logits(built, TOKENS) - hf_logits(source, TOKENS)).max() < 2e-4
    back = hf.from_torch(built, model)
    assert list(back.tensors) == list(model.tensors)
    for name, array in model.tensors.items():
        np.testing.assert_array_equal(back.tensors[name], array)


@pytest.mark.dev
@pytest.mark.parametrize(("family", "changes"), [
    ("granite", {"attention_bias": True, "mlp_bias": True}), ("granite", {"tie_word_embeddings": False}),
    ("smollm3", {"tie_word_embeddings": False}), ("phi3", {"partial_rotary_factor": 1.0}),
    ("phi3", {"max_position_embeddings": 2048, "original_max_position_embeddings": 512, "rope_scaling": {
        "type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5, 1.9, 2.4], "long_factor": [2.0] * 6}}),
    ("hunyuan-dense", {"rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "alpha": 50.0, "factor": 1.0}}),
    ("olmo3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
                                "attention_factor": 1.2}}),
    ("exaone4", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
    ("mistral3", {"sliding_window": None}),
    ("lfm2", {"block_auto_adjust_ff_dim": True, "block_multiple_of": 32}),
], ids=str)
def test_variants(family, changes, tmp_path):
    _, source = make_family(family, tmp_path)
    config = type(source.config)(**source.config.to_dict() | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        source = type(source)._from_config(config, attn_implementation="eager").float().eval()
        for parameter in source.parameters():
            parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    folder = write_folder(tmp_path / "model", source, byte_level())
    made = convert.convert(folder)
    truth = hf_logits(source, TOKENS)
    agree(made, tmp_path, truth)
    assert distance(hf_logits(hf.to_torch(made), TOKENS), truth) < 1e-5


def test_a_granite_4_without_mamba_is_a_granite(tmp_path):
    _, source = make_family("granite", tmp_path)
    folder = write_folder(tmp_path / "model", source, byte_level())
    wanted = convert.convert(folder)
    held = read_safetensors(folder / "model.safetensors")
    for i in range(3):
        block = f"model.layers.{i}"
        fused = [held.pop(f"{block}.mlp.{name}_proj.weight") for name in ("gate", "up")]
        held[f"{block}.shared_mlp.input_linear.weight"] = np.concatenate(fused)
        held[f"{block}.shared_mlp.output_linear.weight"] = held.pop(f"{block}.mlp.down_proj.weight")
    write_safetensors(folder / "model.safetensors", held)
    edit(folder / "config.json", model_type="granitemoehybrid", layer_types=["attention"] * 3, num_local_experts=0,
         position_embedding_type="rope", shared_intermediate_size=160)
    made = convert.convert(folder)
    assert made.metadata == wanted.metadata
    for name, array in wanted.tensors.items():
        np.testing.assert_array_equal(made.tensors[name], array)
    edit(folder / "config.json", layer_types=["mamba", "attention", "attention"], mamba_d_state=32,
         mamba_n_heads=8, mamba_d_head=16)
    with pytest.raises(FormatError, match=r"model: the model lacks the tensor blk.0.ssm_in.weight"):
        convert.convert(folder)


@pytest.mark.parametrize("changes", [
    {"position_embedding_type": "rope"}, {"tie_word_embeddings": False, "shared_intermediate_size": 96},
    {"layer_types": ["mamba", "mamba", "attention"], "attention_bias": True, "mamba_n_heads": 4, "mamba_d_head": 32},
], ids=str)
def test_variants_of_granite_hybrids(changes, tmp_path):
    _, source = make_family("granitehybrid", tmp_path, **changes)
    made = convert.convert(write_folder(tmp_path / "model", source, byte_level()))
    agree(made, tmp_path, hf_logits(source, TOKENS))
    edit(tmp_path / "model" / "config.json", mamba_n_groups=2)
    with pytest.raises(UnsupportedError, match="has mamba_n_groups = 2; edgetune converts models where it is 1"):
        convert.convert(tmp_path / "model")


def test_a_granite_4_with_experts_and_without_mamba_is_a_granitemoe(tmp_path):
    _, source = make_family("granitemoeshared", tmp_path)
    folder = write_folder(tmp_path / "model", source, byte_level())
    wanted = convert.convert(folder)
    edit(folder / "config.json", model_type="granitemoehybrid", layer_types=["attention"] * 3,
         position_embedding_type="rope")
    made = convert.convert(folder)
    assert made.metadata == wanted.metadata
    assert made.tensors.keys() == wanted.tensors.keys()


@pytest.mark.parametrize("changes", [
    {"linear_num_value_heads": 6, "tie_word_embeddings": False, "num_key_value_heads": 4},
    {"layer_types": ["full_attention", "linear_attention", "linear_attention"]},
], ids=str)
def test_variants_of_qwen35(changes, tmp_path):
    """Value heads of one key head stand together in transformers; blocks with attention need be no each n-th."""
    path, source = make_family("qwen35", tmp_path, metadata={"qwen35.attention.recurrent_layers": [
        kind == "linear_attention" for kind in changes.get("layer_types", [])]} if "layer_types" in changes else {},
        **changes)
    folder = write_folder(tmp_path / "model", source, byte_level())
    made = convert.convert(folder)
    agree(made, tmp_path, hf_logits(source, TOKENS))
    for name, tensor in open_gguf(path).tensors.items():
        np.testing.assert_array_equal(made.tensors[name], tensor.f32())
    edit(folder / "config.json", attn_output_gate=False)
    with pytest.raises(UnsupportedError, match="has attn_output_gate = False; edgetune converts models where it is"):
        convert.convert(folder)


def test_the_text_part_of_a_qwen35_that_sees_and_drafts(tmp_path):
    _, source = make_family("qwen35", tmp_path)
    folder = write_folder(tmp_path / "model", source, byte_level())
    wanted = convert.convert(folder)
    held = {name.replace("model.", "model.language_model.", 1): values
            for name, values in read_safetensors(folder / "model.safetensors").items()}
    more = dict.fromkeys(("model.visual.blocks.0.attn.qkv.weight", "mtp.fc.weight"), np.ones((4, 4), np.float32))
    write_safetensors(folder / "model.safetensors", held | more)
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_5", "text_config": text}))
    made = convert.convert(folder)
    assert made.metadata == wanted.metadata
    for name, array in wanted.tensors.items():
        np.testing.assert_array_equal(made.tensors[name], array)


def test_an_internlm2_is_a_llama_under_other_names(tmp_path):
    path, source = make_family("internlm2", tmp_path)
    made = convert.convert(folder_of("internlm2", source, tmp_path / "model"))
    assert made.architecture == "internlm2"
    for name, tensor in open_gguf(path).tensors.items():
        np.testing.assert_array_equal(made.tensors[name], tensor.f32())


@pytest.mark.parametrize("changes", [{}, {"attention_k_eq_v": True, "num_global_key_value_heads": 1,
                                          "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}], ids=str)
def test_a_gemma4_says_the_sizes_of_its_blocks_in_two_ways(changes, tmp_path):
    """Once, as its makers do, or block by block, as transformers does that saves it again."""
    _, source = make_family("gemma4", tmp_path, **changes)
    folder = write_folder(tmp_path / "model", source, byte_level())
    made = convert.convert(folder)
    agree(made, tmp_path, hf_logits(source, TOKENS), 3e-3)  # llama.cpp looks GELU up in 16 bits
    edit(folder / "config.json", changes, without=["per_layer_config"], global_head_dim=32)
    assert convert.convert(folder).metadata == made.metadata


@pytest.mark.parametrize(("family", "changes", "sentence"), [
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, r"has no_rope_layers = \[1, 1, 1, 1\]"),
    ("exaone4", {"layer_types": ["sliding_attention"] * 3, "sliding_window": 8}, "has layer_types ="),
    ("lfm2", {"conv_bias": True}, "has conv_bias = True; edgetune converts models where it is False"),
    ("qwen3moe", {"mlp_only_layers": [0]}, r"has mlp_only_layers = \[0\]"),
    ("olmoe", {"norm_topk_prob": True}, "has norm_topk_prob = True"),
    ("hunyuan-dense", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "by dynamic; known for hunyuan"),
    ("granitehybrid", {"mamba_conv_bias": False}, "has mamba_conv_bias = False"),
    ("granitehybrid", {"time_step_limit": [0.0, 0.1]}, "has time_step_limit = .0.0, 0.1"),
])
def test_variants_that_are_refused(family, changes, sentence, tmp_path):
    folder = write_folder(tmp_path / "model", make_family(family, tmp_path)[1], byte_level())
    edit(folder / "config.json", changes)
    with pytest.raises(UnsupportedError, match=sentence):
        convert.convert(folder)


@pytest.mark.parametrize("count", [5, 7])
def test_experts_that_do_not_fit_the_configuration_are_named(count, tmp_path):
    folder = write_folder(tmp_path / "model", make_family("qwen3moe", tmp_path)[1], byte_level())
    edit(folder / "config.json", num_experts=count, num_local_experts=count)
    with pytest.raises(FormatError, match=f"experts? .*of blk.0.ffn_.*_exps.weight, config.json says {count}"):
        convert.convert(folder)


@pytest.mark.dev
@pytest.mark.parametrize("family", COMPUTED)
def test_what_peft_merges_and_we_convert_is_what_we_merge(family, tmp_path):
    """An exported adapter, merged by PEFT into transformers' model, which is saved and converted."""
    path, source = make_family(family, tmp_path)
    base = open_gguf(path)
    shape = read_shape(base)
    names = [f"blk.{i}.{name}" for i in range(shape.n_layer) for name in shape.linear_shapes(i)]
    pairs = random_updates(base, names, size=0.5)
    export_peft(pairs, base, tmp_path / "peft")
    merged = peft.PeftModel.from_pretrained(source, tmp_path / "peft").merge_and_unload()
    made = convert.convert(folder_of(family, merged, tmp_path / "model"))
    merge(base, pairs, tmp_path / "merged.gguf", "F32")
    for name, tensor in open_gguf(tmp_path / "merged.gguf").tensors.items():
        np.testing.assert_allclose(made.tensors[name], tensor.f32(), rtol=0, atol=2e-6, err_msg=name)
    name = "blk.0.ffn_down.weight"
    assert not np.allclose(made.tensors[name], base.tensors[name].f32(), atol=1e-3)


# ---- fewer weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name in COMPUTED if name != "smollm3"])
def test_dropped_blocks_are_gone_for_llama_cpp(family, tmp_path):
    path, source = make_family(family, tmp_path, **BLOCKS.get(family, FIVE))
    kept = [0, 3, 4]
    smaller = prune.without_blocks(read(path), kept)
    source.model.layers = torch.nn.ModuleList(source.model.layers[i] for i in kept)
    source.config.num_hidden_layers = 3
    if getattr(source.config, "layer_types", None):
        source.config.layer_types = [source.config.layer_types[i] for i in kept]
    agree(smaller, tmp_path, hf_logits(source, TOKENS))


def test_blocks_that_llama_cpp_counts_are_not_dropped(tmp_path):
    model = read(make_family("smollm3", tmp_path)[0])
    with pytest.raises(UsageError, match="every 4th block of a smollm3 has no rotary embedding"):
        prune.drop_blocks(model, WINDOWS, 1)


@pytest.mark.parametrize("family", COMPUTED)
def test_narrowed_blocks_lack_what_was_taken(family, tmp_path):
    """All groups stay where llama.cpp wants heads that are as wide as the model."""
    wide = {"exaone4", "internlm2", "olmo2", "olmo3", "phi3", "lfm2"}
    more = {} if family in wide else {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32}
    if family in ("granite", "smollm3"):
        more |= {"hidden_size": 192}
    path, source = make_family(family, tmp_path, **more)
    model = read(path)
    shape = model.shape
    groups = shape.n_kv if family in wide else 2
    rng = np.random.default_rng(1)
    kept = [KeptParts(np.sort(rng.permutation(shape.n_kv)[:groups]), np.sort(rng.permutation(160)[:96]))
            for _ in range(shape.n_layer)]
    smaller = prune.narrowed(model, kept)
    per_group = shape.d_q // shape.n_kv
    with torch.no_grad():
        for i, keep in enumerate(kept):
            out, down = (source.get_submodule(hf.module_in_torch(f"blk.{i}.{part.last}", model.architecture))
                         for part in (mixer_of(shape, i), feed_of(shape, i)))
            if groups < shape.n_kv:
                columns = [g * per_group + j for g in keep.groups for j in range(per_group)]
                out.weight[:, np.setdiff1d(np.arange(shape.d_q), columns)] = 0
            down.weight[:, np.setdiff1d(np.arange(160), keep.channels)] = 0
    agree(smaller, tmp_path, hf_logits(source, TOKENS))
    assert (smaller.shape.n_kv, smaller.shape.d_ff) == (groups, 96)


def mean_kl(smaller, whole):
    total = 0.0
    for window in WINDOWS:
        p, q = (torch.log_softmax(torch.from_numpy(hf_logits(model, window)), -1) for model in (whole, smaller))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(WINDOWS)


@pytest.mark.dev
@pytest.mark.parametrize("family", mostly_slow(COMPUTED, ["granite", "lfm2"]))
def test_fitting_and_distilling_bring_a_narrowed_model_nearer(family, tmp_path, monkeypatch):
    monkeypatch.setattr("edgetune.compress.shrink.blockwise.quick", lambda: False)
    monkeypatch.setattr("edgetune.compress.shrink.distill.quick", lambda: False)
    model = read(make_family(family, tmp_path)[0])
    smaller, facts = prune.narrow(model, WINDOWS, 0.6)
    unfitted, _ = prune.narrow(model, WINDOWS, 0.6, fit=False)
    whole = hf.to_torch(model)
    fitted = mean_kl(hf.to_torch(smaller), whole)
    assert facts.channels == 96
    assert fitted < 0.95 * mean_kl(hf.to_torch(unfitted), whole)
    windows = np.concatenate([WINDOWS[:8], WINDOWS[:1]])
    config = CompressConfig(distill_rank=4, steps=12, distill_lr=1e-2, distill_length=48, distill_batch=4, seed=1)
    _, healed = distill.distill(smaller, model, windows, config, tmp_path / "state", threads=1)
    assert healed.curve[-1].kl < 0.95 * healed.curve[0].kl
    assert healed.source_perplexity > 1


# one of each way that blocks differ; that each family drops them is tested above
@pytest.mark.dev
@pytest.mark.parametrize("family", mostly_slow([name for name in COMPUTED if name != "smollm3"],
                                               ["granite", "lfm2", "olmo3", "phi3"]))
def test_the_kl_without_blocks_is_that_of_the_logits(family, tmp_path, monkeypatch):
    monkeypatch.setattr("edgetune.compress.shrink.blockwise.quick", lambda: False)
    model = read(make_family(family, tmp_path)[0])
    _, facts = prune.drop_blocks(model, WINDOWS, 1)
    kept = [i for i in range(model.shape.n_layer) if i not in facts.blocks]
    plain = hf.to_torch(prune.without_blocks(model, kept))
    assert mean_kl(plain, hf.to_torch(model)) == pytest.approx(facts.kl[0], rel=1e-3)


# ---- the whole way ---------------------------------------------------------------------------------------------------

WORDS = ["", "the", "light", "off", "on", "set", "to", "turn", "user", "tool", "system", "10", '{"', '":', '"}']


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(120):
            row = {key: " ".join(rng.choice(WORDS, 12)) for key in ("prompt", "completion")}
            file.write(json.dumps(row) + "\n")
    return path


def compress(source, out, *args):
    return CliRunner().invoke(cli, ["compress", str(source), "-o", str(out), "--measure-tokens", "256",
                                    "--calibrate-tokens", "512", "--threads", "1", *map(str, args)])


SIZES = {"d_model": 256, "d_ff": 256, "n_heads": 16}  # of whole blocks of K-quants


@pytest.mark.dev
@pytest.mark.parametrize("family", mostly_slow([name for name in SHAPES if name in CONVERTED and name not in FAMILIES],
                                               ["phi3", "lfm2moe"]))
def test_the_whole_way(family, rows, tmp_path):
    sizes = SIZES | ({"n_kv_heads": 16} if family == "olmoe" else {}) | ({"d_expert": 256} if "moe" in family else {})
    if family in ("qwen3moe", "mistral3", "hunyuan-dense"):
        sizes |= {"n_heads": 8}
    source = write_tiny(tmp_path / "model.gguf", family, formats="F16", **sizes)
    trim = ["--vocab", 340, "--vocab-from", rows]
    if family in (*MIXTURES, *STATES, "gemma4"):
        done = compress(source, tmp_path / "out.edge", *trim, "--measure", rows, "--type", "Q4_K_M")
        for option in ("--calibrate", "--distill"):
            refused = compress(source, tmp_path / "no.edge", option, rows)
            assert f"{option} needs the model in PyTorch, and {family} is quantized and trimmed alone" in " ".join(
                refused.output.split())
    else:
        drop = [] if family == "smollm3" else ["--drop-blocks", 1]
        done = compress(source, tmp_path / "out.edge", *trim, "--calibrate", rows, *drop, "--target-size", "900K")
    assert done.exit_code == 0, done.output
    bundle = open_bundle(tmp_path / "out.edge")
    assert bundle.manifest["cost"]["kl"] > 0
    assert bundle.gguf.tensors["token_embd.weight"].shape[0] == 340
    onnx = compress(source, tmp_path / "no.edge", "--format", "onnx", "--measure", rows)
    assert f"--format onnx is given for {family}" in onnx.output or "packages that are installed" in onnx.output
    trainer = Trainer(tmp_path / "out.edge", rank=2, max_length=32, steps=1, batch_size=1, threads=1)
    trainer.add([{"text": "turn on the light"}])
    assert np.isfinite(trainer.step().loss)


def test_every_type_has_an_architecture_that_is_trained():
    from edgetune.formats.families import FAMILIES as TRAINABLE

    assert {kind.architecture for kind in TYPES.values()} <= TRAINABLE.keys()
