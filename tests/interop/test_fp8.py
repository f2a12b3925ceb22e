"""Block-scaled FP8 is what the definition says, ragged blocks included."""

from __future__ import annotations

import pytest
import torch

from dsv3_mini.errors import InputError
from dsv3_mini.interop.fp8 import block_size, dequantise, scale_shape


@pytest.mark.parametrize(
    ("shape", "block"),
    [((256, 128), (128, 128)), ((130, 300), (128, 128)), ((5, 7), (128, 128)), ((9, 10), (4, 3)), ((1, 1), (1, 1))],
)
def test_every_weight_is_its_stored_value_times_the_scale_of_its_block(
    shape: tuple[int, int], block: tuple[int, int]
) -> None:
    stored = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(100).to(torch.float8_e4m3fn)
    scale = torch.rand(scale_shape(shape, block), generator=torch.Generator().manual_seed(1)) + 0.5
    rows = torch.arange(shape[0])[:, None] // block[0]
    columns = torch.arange(shape[1])[None, :] // block[1]
    result = dequantise(stored, scale, block)
    assert result.dtype == torch.float32
    assert torch.equal(result, stored.float() * scale[rows, columns])


def test_the_scales_of_the_released_shapes() -> None:
    """q_b_proj, kv_a_proj_with_mqa (576 rows: four and a half blocks) and an expert."""
    assert scale_shape((24576, 1536), (128, 128)) == (192, 12)
    assert scale_shape((576, 7168), (128, 128)) == (5, 56)
    assert scale_shape((2048, 7168), (128, 128)) == (16, 56)


def test_the_block_size_is_that_of_the_config() -> None:
    released = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    assert block_size({}, "config.json") == (128, 128)
    assert block_size({"quantization_config": released}, "config.json") == (128, 128)
    assert block_size({"quantization_config": {"quant_method": "fp8"}}, "config.json") == (128, 128)
    assert block_size({"quantization_config": {**released, "weight_block_size": [64, 32]}}, "config.json") == (64, 32)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8", "fmt": "e5m2"},
        {},
        "fp8",
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        {"quant_method": "fp8", "weight_block_size": None},
        {"quant_method": "fp8", "weight_block_size": [True, 128]},
        {"quant_method": "fp8", "weight_block_size": "128"},
    ],
)
def test_other_quantisation_is_refused(quantization: object) -> None:
    with pytest.raises(InputError, match=r"^config\.json: quantization_config"):
        block_size({"quantization_config": quantization}, "config.json")
