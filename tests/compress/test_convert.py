"""Hugging Face folders as GGUF: llama.cpp computes from them what transformers does, and edgetune trains and serves."""

import json
import re

import numpy as np
import pytest
from random_adapters import distance

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from checkpoints import byte_level, edit, write_folder
from families import FAMILIES, ROPES_OF, hf_logits, logits_of, make_family, randomize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

import edgetune
from edgetune.compress.source import convert, floats
from edgetune.compress.source import huggingface as hf
from edgetune.errors import FormatError, UnsupportedError
from edgetune.formats import checkpoint
from edgetune.formats.bundle import open_bundle
from edgetune.formats.gguf import open_gguf, write_gguf

TOKENS = np.random.default_rng(7).integers(0, 400, size=96).tolist()  # past the original context and the window


def folder_of(tmp_path, family="llama", rope="none", tokenizer=None, **options):
    """A tiny random model of the family as save_pretrained writes it -> (folder, transformers' model)."""
    save = {name: options.pop(name) for name in ("max_shard_size", "card") if name in options}
    _, model = make_family(family, tmp_path, rope=rope, **options)
    return write_folder(tmp_path / "model", model, tokenizer or byte_level(), **save), model


def as_f32(model, path):
    """The converted model with nothing rounded, as a file that passes edgetune's checks."""
    write_gguf(path, model.architecture, model.metadata, model.tensors)
    open_bundle(path)
    return path


@pytest.mark.dev
@pytest.mark.parametrize(("family", "rope"), [(family, rope) for family in FAMILIES for rope in ROPES_OF[family]])
def test_logits_are_transformers(family, rope, tmp_path):
    folder, source = folder_of(tmp_path, family, rope)
    model = convert.convert(folder)
    served = logits_of(as_f32(model, tmp_path / "f32.gguf"), TOKENS)
    truth = hf_logits(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"), TOKENS)
    assert truth.std() > 0.5, "flat logits prove nothing"
    assert distance(served, truth) < 1e-3
    np.testing.assert_allclose(truth, hf_logits(source, TOKENS), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_f16_files_hold_f16_weights(family, tmp_path):
    """Weights that F16 holds come out as they are; llama.cpp's own F16 products are all that is left of an error."""
    folder, source = folder_of(tmp_path, family, formats="F16")
    floats.write(tmp_path / "f16.gguf", convert.convert(folder))
    assert distance(logits_of(tmp_path / "f16.gguf", TOKENS), hf_logits(source, TOKENS)) < 5e-3
    again = hf.to_torch(floats.read(open_gguf(tmp_path / "f16.gguf")))
    assert np.abs(hf_logits(again, TOKENS) - hf_logits(source, TOKENS)).max() < 2e-4


@pytest.mark.parametrize(("family", "overrides"), [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True, "head_dim": 24}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("gemma3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    ("gemma3", {"num_hidden_layers": 7, "sliding_window_pattern": 6, "rope_local_base_freq": 500.0}),
    pytest.param("gemma3", {"num_hidden_layers": 62, "query_pre_attn_scalar": 16}, marks=pytest.mark.slow),  # as 27b
])
def test_variants(family, overrides, tmp_path):
    folder, source = folder_of(tmp_path, family, **overrides)
    path = as_f32(convert.convert(folder), tmp_path / "f32.gguf")
    assert distance(logits_of(path, TOKENS), hf_logits(source, TOKENS)) < 1e-3


def test_a_scaled_yarn_is_transformers(tmp_path):
    folder, model = folder_of(tmp_path, "llama", "yarn")
    edit(folder / "config.json", rope_scaling=model.config.rope_scaling | {"attention_factor": 1.3})
    path = as_f32(convert.convert(folder), tmp_path / "f32.gguf")
    truth = hf_logits(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"), TOKENS)
    assert distance(truth, hf_logits(model, TOKENS)) > 0.01
    assert distance(logits_of(path, TOKENS), truth) < 1e-3


def test_metadata_are_what_the_folder_says(tmp_path):
    card = "---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n"
    model = convert.convert(folder_of(tmp_path, "gemma3", "linear", card=card, num_hidden_layers=6,
                                      sliding_window_pattern=6)[0])
    wanted = {"general.name": "model", "general.license": "apache-2.0", "general.type": "model", "general.file_type": 1,
              "general.quantization_version": 2, "gemma3.context_length": 512, "gemma3.embedding_length": 64,
              "gemma3.block_count": 6, "gemma3.feed_forward_length": 160, "gemma3.attention.head_count": 4,
              "gemma3.attention.head_count_kv": 2, "gemma3.attention.key_length": 32,
              "gemma3.attention.value_length": 32, "gemma3.rope.dimension_count": 32, "gemma3.rope.freq_base": 1e6,
              "gemma3.rope.freq_base_swa": 1e4, "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
              "gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 4.0,
              "gemma3.attention.sliding_window": 24, "gemma3.vocab_size": 416}
    found = {key: value for key, value in model.metadata.items() if not key.startswith("tokenizer.")}
    assert found == wanted
    assert "output.weight" not in model.tensors
    assert len(model.metadata["tokenizer.ggml.tokens"]) == 416


def test_shards_and_bf16_are_the_same_model(tmp_path):
    folder, source = folder_of(tmp_path, "qwen3", max_shard_size="100KB")
    assert len(checkpoint.weight_files(folder)) > 2
    model = convert.convert(folder)
    for path in checkpoint.weight_files(folder):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    half = convert.convert(folder)
    source.to(torch.bfloat16).float()
    for name, array in model.tensors.items():
        np.testing.assert_array_equal(half.tensors[name], torch.from_numpy(array).bfloat16().float().numpy())
    assert half.metadata == model.metadata


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_gemma3_that_sees(prefix, tmp_path):
    text = make_family("gemma3", tmp_path)[1]
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 28, "patch_size": 14}
    whole = Gemma3ForConditionalGeneration(Gemma3Config(text.config.to_dict(), vision, mm_tokens_per_image=4))
    randomize(whole)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    folder = write_folder(tmp_path / "sees", whole, byte_level())
    tensors = {re.sub("^(language_model.model.|model.language_model.)", prefix, name): tensor
               for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = as_f32(convert.convert(folder), tmp_path / "f32.gguf")
    assert distance(logits_of(path, TOKENS), hf_logits(text, TOKENS)) < 1e-3


def test_what_transformers_5_writes_means_the_same(tmp_path):
    folder, _ = folder_of(tmp_path, "gemma3", "linear")
    wanted = convert.convert(folder).metadata
    full = {"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0}
    edit(folder / "config.json", without=("rope_theta", "rope_scaling", "rope_local_base_freq"),
         rope_parameters={"full_attention": full, "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}})
    assert convert.convert(folder).metadata == wanted
    (tmp_path / "l").mkdir()
    folder, _ = folder_of(tmp_path / "l", "llama")
    wanted = convert.convert(folder).metadata
    edit(folder / "config.json", without=("rope_theta", "rope_scaling"),
         rope_parameters={"rope_theta": 1e4, "rope_type": "default"})
    assert convert.convert(folder).metadata == wanted


def test_it_trains_and_serves(tmp_path):
    folder, _ = folder_of(tmp_path)
    path = tmp_path / "tiny.gguf"
    floats.write(path, convert.convert(folder))
    trainer = edgetune.Trainer(path, rank=4, max_length=64, steps=1, batch_size=1, threads=1)
    trainer.add([{"messages": [{"role": "user", "content": "lamp"}, {"role": "assistant", "content": "on"}]}])
    assert np.isfinite(trainer.step().loss)
    trainer.save(tmp_path / "adapter")
    messages = [{"role": "user", "content": "turn on the lamp"}]
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)
    with edgetune.Served(path, threads=1) as served:
        tokenizer = served.tokenizer
        assert tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True), bos=True) == prompt
        served.load_adapter(tmp_path / "adapter", "lamp")
        served.use("lamp")
        assert "".join(served.chat(messages, max_tokens=4)) == "".join(served.generate(prompt, max_tokens=4))


CONFIG = [
    ({"model_type": "mamba"}, UnsupportedError,
     "is of model_type 'mamba'; edgetune converts llama, qwen2, qwen3, gemma3"),
    ({"model_type": None}, UnsupportedError, "is of model_type None"),
    ({"model_type": "mixtral", "num_local_experts": 8}, UnsupportedError, r"is a mixture of experts \(mixtral\)"),
    ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedError,
     r"is quantized already \(quantization_config: gptq\); take the model in 16 or 32 bits"),
    ({"hidden_act": "relu"}, UnsupportedError, "has hidden_act = relu; edgetune converts models where it is silu"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, UnsupportedError,
     "scales its rotary embedding by dynamic; known for llama are default, linear, yarn, llama3"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 8.0}}, UnsupportedError,
     r"has rope_scaling.beta_fast = 8.0; llama.cpp computes yarn with 32.0"),
    ({"rope_scaling": {"rope_type": "linear"}}, FormatError, r"config.json is not as transformers writes it: KeyError"),
    ({"rope_theta": None}, FormatError, r"config.json is not as transformers writes it: TypeError"),
    ({"num_attention_heads": 0}, UnsupportedError, r"llama.attention.head_count = 0; edgetune takes 1 to 4096 there"),
    ({"num_hidden_layers": "3"}, UnsupportedError, r"llama.block_count = 3; edgetune needs one whole number"),
    ({"num_hidden_layers": 4}, FormatError, r"model: the model lacks the tensor blk.3"),
    ({"intermediate_size": 128}, FormatError, r"blk.0.ffn_down.weight of shape \[64, 160\], metadata says \[64, 128\]"),
]


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("llama"))[0]


@pytest.fixture
def copy(llama_folder, tmp_path):
    """Its files, to be changed."""
    for path in llama_folder.iterdir():
        (tmp_path / "model" / path.name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "model"


@pytest.mark.parametrize(("changes", "kind", "sentence"), CONFIG)
def test_configurations_that_are_refused(changes, kind, sentence, copy):
    edit(copy / "config.json", changes)
    with pytest.raises(kind, match=sentence):
        convert.convert(copy)


def test_nothing_in_a_folder_is_executed(copy, tmp_path):
    ran = tmp_path / "ran"
    for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (copy / name).write_text(f"open({str(ran)!r}, 'w')")
    edit(copy / "config.json", auto_map={"AutoConfig": "configuration_own.C", "AutoModelForCausalLM": "modeling_own.M"})
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.T", None]})
    convert.convert(copy)
    assert not ran.exists()


def test_qwen_with_a_window_is_refused(tmp_path):
    folder, _ = folder_of(tmp_path, "qwen2")
    edit(folder / "config.json", use_sliding_window=True)
    with pytest.raises(UnsupportedError, match="has use_sliding_window = True"):
        convert.convert(folder)
    edit(folder / "config.json", use_sliding_window=False, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64})
    with pytest.raises(UnsupportedError, match="scales its rotary embedding by llama3; known for qwen2 are"):
        convert.convert(folder)


def test_weights_that_are_refused(copy):
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, weights)
    convert.convert(copy)  # which old transformers wrote
    save_file(tensors | {"model.layers.0.mlp.gate.weight": torch.ones(8, 8)}, weights)
    with pytest.raises(UnsupportedError, match=r"has the tensor 'model.layers.0.mlp.gate.weight', llama.cpp's"):
        convert.convert(copy)
    save_file(tensors | {"model.norm.weight": torch.ones(64, dtype=torch.int8)}, weights)
    with pytest.raises(UnsupportedError, match=r"model.norm.weight is I8; supported are F32, F16, BF16"):
        convert.convert(copy)
    save_file(tensors, weights)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(FormatError, match=r"is no safetensors file: .*not fully covered"):
        convert.convert(copy)
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match=r"only in PyTorch's .bin files, which can run code when read; take a"):
        convert.convert(copy)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(FormatError, match=r"has no model.safetensors"):
        convert.convert(copy)


@pytest.mark.parametrize("name", ["missing.safetensors", "../model/model.safetensors"])
def test_an_index_names_files_in_the_folder(name, copy):
    (copy / checkpoint.INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(FormatError, match=f"names '{re.escape(name)}', which is not in the folder"):
        convert.convert(copy)


def test_missing_and_damaged_files(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match=r"has no tokenizer\.json"):
        convert.convert(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(FormatError, match=r"config.json is damaged"):
        convert.convert(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FormatError, match=r"has no config.json; name a Hugging Face checkpoint's folder"):
        convert.convert(copy)
