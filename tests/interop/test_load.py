"""Loading: what is whole is read, whatever type it is stored in; anything else is refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsv3_mini.errors import InputError
from dsv3_mini.interop import load_pretrained, save_pretrained
from dsv3_mini.interop.fp8 import scale_shape
from dsv3_mini.model.transformer import DeepSeekV3

from .folders import edit_json, edit_tensors, same_weights, some_tokens, tiny_model, tiny_yarn

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` and `many`: a model in one file and in shards. Copied by the tests, never changed."""
    parent = tmp_path_factory.mktemp("saved")
    save_pretrained(tiny_model(), parent / "one")
    save_pretrained(tiny_model(), parent / "many", max_shard_bytes=20_000)
    return parent


@pytest.fixture
def one(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "one", tmp_path / "one"))


@pytest.fixture
def many(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "many", tmp_path / "many"))


def shard_of(folder: Path, tensor: str) -> str:
    return json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def refused(folder: Path, *parts: str) -> str:
    """The one message of loading `folder`, which has all `parts` in it. A warning besides would be one too many."""
    with warnings.catch_warnings(action="error"), pytest.raises(InputError) as caught:
        load_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600, message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    return message


# What can be loaded


def test_types_asked_for_named_and_stored(one: Path) -> None:
    """The caller's word comes first, then that of config.json, then what the weights are stored in."""
    assert load_pretrained(one, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16
    edit_json(one / "config.json", torch_dtype="float16")
    half = load_pretrained(one)
    assert half.lm_head.weight.dtype == torch.float16
    assert half.routers[0].e_score_correction_bias.dtype == torch.float32
    edit_json(one / "config.json", torch_dtype=..., dtype="bfloat16")
    assert load_pretrained(one).lm_head.weight.dtype == torch.bfloat16
    edit_json(one / "config.json", dtype=...)
    assert load_pretrained(one).lm_head.weight.dtype == torch.float32


def test_a_routing_bias_stored_in_bf16_is_read_as_fp32(one: Path) -> None:
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    bias = load_file(one / SINGLE)[name].to(torch.bfloat16)
    edit_tensors(one / SINGLE, **{name: bias})
    loaded = load_pretrained(one, dtype=torch.bfloat16).routers[0].e_score_correction_bias
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, bias.float())


def test_the_model_is_ready_to_call_and_to_train(one: Path) -> None:
    model = load_pretrained(one)
    assert not model.training
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
    model(some_tokens()).logits.sum().backward()


def test_an_mtp_module_without_its_copies_of_shared_matrices(one: Path) -> None:
    edit_tensors(one / SINGLE, **{f"model.layers.3.{n}.weight": None for n in ("embed_tokens", "shared_head.head")})
    assert same_weights(load_pretrained(one), tiny_model())


def test_no_mtp_module_at_all_gives_a_model_without_and_one_warning(one: Path) -> None:
    module = {name: None for name in load_file(one / SINGLE) if name.startswith("model.layers.3.")}
    edit_tensors(one / SINGLE, **module)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_pretrained(one)
    assert [str(w.message) for w in caught if "multi-token" in str(w.message)] == [
        f"{one}: config.json says num_nextn_predict_layers = 1, but the folder has no tensors of such modules; "
        "the model is built without multi-token prediction"
    ]
    assert caught[0].filename == __file__  # it points at the call
    assert model.cfg.num_nextn_predict_layers == 0
    full = tiny_model()(some_tokens())
    assert torch.equal(model(some_tokens()).logits, full.logits)


def test_a_dense_twin_without_its_mtp_module_loads_too(tmp_path: Path) -> None:
    twin = tiny_model(first_k_dense_replace=4)  # three layers and the module
    save_pretrained(twin, tmp_path / "twin")
    assert same_weights(load_pretrained(tmp_path / "twin"), twin)
    module = {name: None for name in load_file(tmp_path / "twin" / SINGLE) if name.startswith("model.layers.3.")}
    edit_tensors(tmp_path / "twin" / SINGLE, **module)
    with pytest.warns(UserWarning, match="without multi-token prediction"):
        model = load_pretrained(tmp_path / "twin")
    assert torch.equal(model(some_tokens()).logits, twin(some_tokens()).logits)


def test_an_index_over_a_single_file(one: Path) -> None:
    edit_index = {"weight_map": dict.fromkeys(load_file(one / SINGLE), SINGLE)}
    (one / INDEX).write_text(json.dumps(edit_index))
    assert same_weights(load_pretrained(one), tiny_model())


def test_files_beside_the_checkpoint_do_not_matter(many: Path) -> None:
    (many / "pytorch_model.bin").write_bytes(b"not looked at")
    save_file({"exp_avg": torch.zeros(1)}, many / "training_state.safetensors")
    (many / "README.md").write_text("")
    assert same_weights(load_pretrained(many), tiny_model())


def test_the_links_of_a_download_cache_are_followed(many: Path, tmp_path: Path) -> None:
    """huggingface_hub keeps files in blobs/ and links to them from snapshots/REVISION/."""
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    blobs = tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in many.iterdir():
        shutil.copy(path, blobs / f"sha-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/sha-{path.name}")
    assert same_weights(load_pretrained(snapshot), tiny_model())


# Block-scaled FP8


def to_fp8(tensors: dict[str, Tensor], block: tuple[int, int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The projections in E4M3 with a scale per block, as the release has them, and what they mean in numbers.

    Written from the definition, element by element, and not with the code under test.
    """
    stored, meant = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if not name.endswith("_proj.weight") and "kv_a_proj_with_mqa" not in name:
            continue
        rows = torch.arange(weight.shape[0])[:, None] // block[0]
        columns = torch.arange(weight.shape[1])[None, :] // block[1]
        amax = torch.zeros(scale_shape(tuple(weight.shape), block))
        flat = (rows * amax.shape[1] + columns).flatten()
        amax = amax.flatten().scatter_reduce(0, flat, weight.abs().flatten(), "amax").view_as(amax)
        scale = amax / 448
        stored[name] = (weight / scale[rows, columns]).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        meant[name] = stored[name].float() * scale[rows, columns]
    return stored, meant


@pytest.mark.parametrize("block", [(128, 128), (16, 8), (7, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_weights_are_dequantised(block: tuple[int, int], dtype: torch.dtype, one: Path) -> None:
    stored, meant = to_fp8(load_file(one / SINGLE), block)
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in stored.values()) > 80
    save_file(stored, one / SINGLE)
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    edit_json(one / "config.json", quantization_config=quantization, torch_dtype="bfloat16")
    model = load_pretrained(one, dtype=dtype)
    save_pretrained(model, one.parent / "again")
    assert "quantization_config" not in json.loads((one.parent / "again" / "config.json").read_text())
    again = load_file(one.parent / "again" / SINGLE)
    assert again.keys() == meant.keys()
    for name, tensor in again.items():
        assert torch.equal(tensor, meant[name].to(tensor.dtype)), name


def test_fp8_scales_may_lie_in_another_shard_and_the_type_defaults_to_bf16(one: Path, tmp_path: Path) -> None:
    stored, meant = to_fp8(load_file(one / SINGLE), (128, 128))
    scales = {name: tensor for name, tensor in stored.items() if name.endswith("_scale_inv")}
    weights = {name: tensor for name, tensor in stored.items() if name not in scales}
    (one / SINGLE).unlink()
    save_file(weights, one / "a.safetensors")
    save_file(scales, one / "b.safetensors")
    weight_map = dict.fromkeys(weights, "a.safetensors") | dict.fromkeys(scales, "b.safetensors")
    (one / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    edit_json(one / "config.json", torch_dtype=...)
    model = load_pretrained(one)
    assert model.lm_head.weight.dtype == torch.float32  # the embedding is not quantised and says what the type is
    o_proj = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(model.state_dict()[o_proj], meant[o_proj])


UP = "model.layers.1.mlp.experts.4.up_proj.weight"


def fp8_up(shape: tuple[int, int] = (1, 1), dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {UP: torch.ones(16, 32).to(torch.float8_e4m3fn), f"{UP}_scale_inv": torch.ones(shape, dtype=dtype)}


BAD_FP8: dict[str, tuple[dict[str, Tensor | None], tuple[str, ...]]] = {
    "no scale": ({**fp8_up(), f"{UP}_scale_inv": None}, (f"{UP}_scale_inv", "missing")),
    "scale of nothing": ({f"{UP}_scale_inv": torch.ones(1, 1)}, (f"{UP}_scale_inv", "not part")),
    "scale of another block": (dict(fp8_up((2, 1))), (f"{UP}_scale_inv", "F32 [2, 1]", "F32 [1, 1]")),
    "scale in bf16": (dict(fp8_up(dtype=torch.bfloat16)), (f"{UP}_scale_inv", "BF16")),
    "a norm in FP8": (
        {"model.norm.weight": torch.ones(32).to(torch.float8_e4m3fn), "model.norm.weight_scale_inv": torch.ones(1, 1)},
        ("model.norm.weight", "F8_E4M3"),
    ),
    "E5M2": ({UP: torch.ones(16, 32).to(torch.float8_e5m2)}, (UP, "F8_E5M2")),
}


@pytest.mark.parametrize(("changes", "parts"), BAD_FP8.values(), ids=BAD_FP8)
def test_fp8_that_cannot_be_is_refused(changes: dict[str, Tensor | None], parts: tuple[str, ...], one: Path) -> None:
    edit_tensors(one / SINGLE, **changes)
    refused(one, str(one / SINGLE), *parts)


def test_another_quantisation_is_refused(one: Path) -> None:
    edit_json(one / "config.json", quantization_config={"quant_method": "awq"})
    refused(one, str(one / "config.json"), "quantization_config", "awq", "fp8")


# Folders that are not checkpoints


def test_no_folder_a_file_and_an_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", str(tmp_path / "none"), "does not exist")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", str(tmp_path / "file"), "is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", str(tmp_path / "empty" / "config.json"), "no such file")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a JSON"),
        (b"{not json", "not a JSON"),
        (b"\xff\xfe{}", "not a JSON"),
        (b"[" * 100_000, "not a JSON"),
        (b"[1]", "JSON object"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not a JSON"),
        (b"{}", "model_type"),
    ],
    ids=["empty", "broken", "not UTF-8", "nested", "a list", "a long number", "no fields"],
)
def test_a_config_that_is_none(content: bytes, says: str, one: Path) -> None:
    (one / "config.json").write_bytes(content)
    refused(one, str(one / "config.json"), says)


def test_a_config_that_cannot_be_honoured(one: Path) -> None:
    edit_json(one / "config.json", scoring_func="softmax")
    refused(one, str(one / "config.json"), "scoring_func", "sigmoid")


def test_a_type_that_is_none(one: Path) -> None:
    for name in ("int8", "Tensor", 3):
        edit_json(one / "config.json", torch_dtype=name)
        refused(one, str(one / "config.json"), "torch_dtype", "bfloat16")
    with pytest.raises(InputError, match=r"dtype = torch\.int8"):
        load_pretrained(one, dtype=torch.int8)


class Bomb:
    """A pickle that would leave a file behind when read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", SINGLE])
def test_a_pickle_is_never_read(name: str, one: Path, tmp_path: Path) -> None:
    (one / SINGLE).unlink()
    (one / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    refused(one, str(one / name), "safetensors")
    assert not (tmp_path / "trace").exists()


def test_no_weights_and_shards_without_an_index(one: Path, many: Path) -> None:
    (one / SINGLE).unlink()
    refused(one, str(one), "no weights", SINGLE)
    (many / INDEX).unlink()
    refused(many, str(many / INDEX), "is missing")


# Files that are not whole


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file(keep: int, one: Path) -> None:
    whole = (one / SINGLE).read_bytes()
    (one / SINGLE).write_bytes(whole[:keep])
    refused(one, str(one / SINGLE), "not a whole safetensors file")


def test_a_truncated_shard_and_a_missing_one(many: Path) -> None:
    file = many / shard_of(many, "model.norm.weight")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(many, str(file), "not a whole safetensors file")
    file.unlink()
    refused(many, str(file), "this shard is missing")


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**9), value=st.integers(0, 255), cut=st.booleans())
def test_any_damage_of_a_file_is_an_input_error_or_just_other_weights(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: bool
) -> None:
    """Headers are nearly all of a tiny file. A changed weight cannot be seen: safetensors has no checksums."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copy(saved / "one" / "config.json", folder)
    content = bytearray((saved / "one" / SINGLE).read_bytes())
    place %= 12_000 if place % 3 else len(content)
    if cut:
        del content[place:]
    else:
        content[place] = value
    (folder / SINGLE).write_bytes(content)
    with warnings.catch_warnings(action="ignore"):
        try:
            model = load_pretrained(folder)
        except InputError as error:
            model, message = None, str(error)
    assert isinstance(model, DeepSeekV3) or str(folder) in message
    shutil.rmtree(folder)


# Indexes that lie


def test_an_index_may_not_point_outside_its_folder(many: Path, tmp_path: Path) -> None:
    name = "model.norm.weight"
    file = shard_of(many, name)
    outside = tmp_path / "outside.safetensors"
    shutil.copy(many / file, outside)
    (many / "sub").mkdir()
    shutil.copy(many / file, many / "sub" / file)
    index = json.loads((many / INDEX).read_text())
    for path in ("../outside.safetensors", str(outside), f"sub/{file}", "..\\outside.safetensors", f"./{file}"):
        edit_json(many / INDEX, weight_map={**index["weight_map"], name: path})
        refused(many, str(many / INDEX), "outside its folder")
    for path in ("pytorch_model.bin", "..", "", "weights.pkl"):
        edit_json(many / INDEX, weight_map={**index["weight_map"], name: path})
        refused(many, str(many / INDEX), ".safetensors files")
    for value in (None, 3, ["a"], {}):
        edit_json(many / INDEX, weight_map={**index["weight_map"], name: value})
        refused(many, str(many / INDEX), name)


def test_a_shard_may_not_be_a_link_to_the_outside(many: Path, tmp_path: Path) -> None:
    file = many / shard_of(many, "model.norm.weight")
    file.rename(tmp_path / "outside.safetensors")
    file.symlink_to("../outside.safetensors")
    refused(many, str(file), "link", "outside its folder")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["model.safetensors"]}'])
def test_an_index_that_is_none(content: str, many: Path) -> None:
    (many / INDEX).write_text(content)
    refused(many, str(many / INDEX))


def test_an_index_and_shards_that_disagree(many: Path) -> None:
    norm, head = "model.norm.weight", "lm_head.weight"
    index = json.loads((many / INDEX).read_text())
    weight_map = index["weight_map"]
    files = sorted(set(weight_map.values()))

    edit_json(many / INDEX, weight_map={**weight_map, "model.layers.0.extra.weight": weight_map[norm]})
    refused(many, str(many / weight_map[norm]), "model.layers.0.extra.weight", "holds no tensor")

    other = next(file for file in files if file != weight_map[norm])
    edit_json(many / INDEX, weight_map={**weight_map, norm: other})
    refused(many, str(many / INDEX), norm, other, weight_map[norm])

    edit_json(many / INDEX, weight_map={name: file for name, file in weight_map.items() if name != norm})
    refused(many, str(many / weight_map[norm]), norm, "does not list")

    edit_json(many / INDEX, weight_map=weight_map)
    other = next(file for file in files if file != weight_map[head])
    edit_tensors(many / other, **{head: torch.zeros(61, 32)})
    refused(many, head, other, weight_map[head])


def test_two_checkpoints_in_one_folder(one: Path, many: Path) -> None:
    shutil.copy(one / SINGLE, many / SINGLE)
    refused(many, str(many / INDEX), SINGLE, "two checkpoints")


# Tensors that do not fit the config

GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
BAD_TENSORS: dict[str, tuple[dict[str, Tensor | None], tuple[str, ...]]] = {
    "one missing": ({"model.norm.weight": None}, ("tensor model.norm.weight is missing",)),
    "an expert missing": ({UP: None}, (UP, "is missing")),
    "a layer missing": ({"model.layers.2.input_layernorm.weight": None}, ("layers.2", "num_hidden_layers = 3")),
    "the last expert missing": (
        {"model.layers.3.mlp.experts.7.down_proj.weight": None},
        ("experts.7.down_proj", "n_routed_experts = 8"),
    ),
    "five missing": (
        {f"model.layers.1.mlp.experts.{e}.up_proj.weight": None for e in range(5)},
        ("experts.0.up_proj.weight, ", "and 2 more are missing"),
    ),
    "an MTP module cut in half": ({"model.layers.3.enorm.weight": None}, ("model.layers.3.enorm.weight is missing",)),
    "a projection of an MTP module": ({"model.layers.3.eh_proj.weight": None}, ("num_nextn_predict_layers = 1",)),
    "one too many": ({"model.layers.1.mlp.gate.bias": torch.zeros(8)}, ("model.layers.1.mlp.gate.bias", "not part")),
    "a layer too many": ({"model.layers.4.enorm.weight": torch.zeros(32)}, ("model.layers.4.enorm", "not part")),
    "experts stacked": ({GATE_UP: torch.zeros(8, 32, 32)}, (GATE_UP, "not part")),
    "the wrong shape": ({"model.norm.weight": torch.ones(31)}, ("model.norm.weight", "[31]", "[32]")),
    "transposed": ({UP: torch.ones(32, 16)}, (UP, "[32, 16]", "[16, 32]")),
    "one dimension more": ({"model.norm.weight": torch.ones(1, 32)}, ("model.norm.weight", "[1, 32]", "[32]")),
    "a copy of the wrong shape": (
        {"model.layers.3.embed_tokens.weight": torch.ones(60, 32)},
        ("model.layers.3.embed_tokens.weight", "[60, 32]", "[61, 32]"),
    ),
    "whole numbers": ({"model.norm.weight": torch.ones(32, dtype=torch.int32)}, ("model.norm.weight", "I32", "BF16")),
    "nothing": ({}, ()),
}


@pytest.mark.parametrize(("changes", "parts"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_do_not_fit_are_named(
    changes: dict[str, Tensor | None], parts: tuple[str, ...], one: Path
) -> None:
    edit_tensors(one / SINGLE, **changes)
    if changes:
        refused(one, str(one / SINGLE), *parts)
    else:  # the change is what is refused, not the way it is made
        assert same_weights(load_pretrained(one), tiny_model())


@pytest.mark.parametrize("name", ["model.norm\n.weight", "\x1b[2J", f"model.layers.{'9' * 5000}.x", "x" * 1000])
def test_names_that_would_garble_a_message_do_not_get_into_one(name: str, one: Path, many: Path) -> None:
    edit_tensors(one / SINGLE, **{name: torch.zeros(1)})
    assert refused(one, str(one / SINGLE), "no name of a tensor").isprintable()
    index = json.loads((many / INDEX).read_text())
    edit_json(many / INDEX, weight_map={**index["weight_map"], name: shard_of(many, "lm_head.weight")})
    assert refused(many, str(many / INDEX), "no name of a tensor").isprintable()


def test_a_file_without_any_tensor(one: Path) -> None:
    save_file({}, one / SINGLE)
    refused(one, str(one), "num_hidden_layers")


BAD_SIZES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "another vocabulary": (dict(vocab_size=62), ("embed_tokens", "[61, 32]", "[62, 32]")),
    "another width": (dict(hidden_size=33), ("embed_tokens", "[61, 32]", "[61, 33]")),
    "more layers": (dict(num_hidden_layers=4), ("model.layers.3.eh_proj.weight", "not part")),
    "many more layers": (dict(num_hidden_layers=9), ("num_hidden_layers = 9", "missing")),
    "more dense layers": (dict(first_k_dense_replace=2), ("model.layers.1.mlp", "missing")),
    "fewer layers": (dict(num_hidden_layers=2), ("model.layers.2.", "missing")),
    "no MTP modules": (dict(num_nextn_predict_layers=0), ("model.layers.3.", "not part")),
    "two MTP modules": (dict(num_nextn_predict_layers=2), ("num_nextn_predict_layers = 2",)),
    "queries not compressed": (dict(q_lora_rank=None), ("q_proj", "missing")),
    "fewer experts": (dict(n_routed_experts=4, n_group=2, topk_group=2), ("experts.4.", "not part")),
    "far too many layers": (dict(num_hidden_layers=10**12, num_nextn_predict_layers=0), ("num_hidden_layers",)),
    "far too many modules": (dict(num_nextn_predict_layers=10**12), ("num_nextn_predict_layers",)),
    "far too many experts": (dict(n_routed_experts=4 * 10**12), ("n_routed_experts",)),
    "a width beyond memory": (dict(hidden_size=10**9), ("[61, 1000000000]",)),
    "a width beyond numbers": (dict(hidden_size=2**62, moe_intermediate_size=2**61), ("cannot be built",)),
    "a theta of one": (dict(rope_theta=1.0, rope_scaling={"type": "yarn", "factor": 4}), ("cannot be built",)),
}


@pytest.mark.timeout(120)  # whoever builds or counts by such numbers first does not come back
@pytest.mark.parametrize(("changes", "parts"), BAD_SIZES.values(), ids=BAD_SIZES)
def test_a_config_of_another_model_is_refused_at_once(
    changes: dict[str, Any], parts: tuple[str, ...], one: Path
) -> None:
    edit_json(one / "config.json", rope_parameters=..., **changes)
    refused(one, str(one), *parts)


def test_nothing_is_built_for_a_folder_that_is_refused(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is given to the model only when every name, shape and type is known to fit."""
    edit_tensors(one / SINGLE, **{"lm_head.weight": torch.ones(61, 31)})
    monkeypatch.setattr(DeepSeekV3, "to_empty", lambda *args, **kwargs: pytest.fail("memory was taken"))
    refused(one, "lm_head.weight")


def test_yarn_and_positions_are_there_after_building_without_memory(tmp_path: Path) -> None:
    """A position table that is lost on the meta device would show here."""
    model = tiny_model(rope_scaling=tiny_yarn())
    save_pretrained(model, tmp_path / "m")
    loaded = load_pretrained(tmp_path / "m")
    assert torch.equal(loaded(some_tokens()).logits, model(some_tokens()).logits)
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
