"""MLA against Eq. 1-11 written out, and its two ways to attend against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.model.mla import MLA
from dsv3_mini.model.rope import RotaryEmbedding
from dsv3_mini.model.transformer import DeepSeekV3

from .literal import literal_mla, literal_norm, turn
from .reference import randomise, small_config, small_yarn

CONFIGS = {
    "query latent": {},
    "no query latent": dict(q_lora_rank=None),
    "yarn": dict(rope_scaling=small_yarn()),
    "yarn, mscales differ": dict(rope_scaling=small_yarn(mscale=0.7, mscale_all_dim=1.2)),
    "values wider than keys": dict(v_head_dim=20),
    "values narrower than keys": dict(v_head_dim=6),
    "one head": dict(num_attention_heads=1),
    "rope wider than content": dict(qk_nope_head_dim=4, qk_rope_head_dim=8),
}


def make_mla(seed: int = 0, **changes: object) -> tuple[MLA, ModelConfig]:
    cfg = small_config(**changes)
    mla = MLA(cfg)
    randomise(mla, cfg.kv_lora_rank, seed)
    return mla, cfg


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def angles(cfg: ModelConfig, tokens: int, start: int = 0) -> tuple[Tensor, Tensor]:
    return RotaryEmbedding(cfg)(torch.arange(start, start + tokens))


@torch.no_grad()
@pytest.mark.parametrize("path", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_equations(path: str, name: str) -> None:
    mla, cfg = make_mla(**CONFIGS[name])
    x, (cos, sin) = randn(2, 5, cfg.hidden_size), angles(cfg, 5)
    out = mla(x, cos, sin, path=path)
    assert out.shape == x.shape
    torch.testing.assert_close(out.double(), literal_mla(mla, cfg, x, cos, sin), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_both_paths_have_the_same_gradients(name: str) -> None:
    mla, cfg = make_mla(**CONFIGS[name])
    x, upstream, (cos, sin) = randn(2, 7, cfg.hidden_size).requires_grad_(), randn(2, 7, 32, seed=1), angles(cfg, 7)
    leaves = [x, *mla.parameters()]
    expanded = torch.autograd.grad(mla(x, cos, sin, path="expanded"), leaves, upstream)
    absorbed = torch.autograd.grad(mla(x, cos, sin, path="absorbed"), leaves, upstream)
    for a, b in zip(expanded, absorbed):
        torch.testing.assert_close(a, b, atol=2e-6 * b.abs().max().item() + 1e-6, rtol=1e-4)


def test_parameters_have_the_released_names_and_shapes() -> None:
    mla, _ = make_mla()
    assert {name: tuple(p.shape) for name, p in mla.named_parameters()} == {
        "q_a_proj.weight": (20, 32),  # d_c' x d
        "q_a_layernorm.weight": (20,),
        "q_b_proj.weight": (4 * (10 + 6), 20),  # per head [W^UQ; W^QR]
        "kv_a_proj_with_mqa.weight": (12 + 6, 32),  # [W^DKV; W^KR]: one rotary key for all heads
        "kv_a_layernorm.weight": (12,),
        "kv_b_proj.weight": (4 * (10 + 14), 12),  # per head [W^UK; W^UV]
        "o_proj.weight": (32, 4 * 14),
    }
    assert "q_proj.weight" in dict(make_mla(q_lora_rank=None)[0].named_parameters())


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_norms_on_the_latents_have_eps_1e_6_whatever_the_config_says(eps: float) -> None:
    mla, _ = make_mla(rms_norm_eps=eps)
    assert mla.q_a_layernorm.eps == mla.kv_a_layernorm.eps == 1e-6


@torch.no_grad()
def test_cache_holds_the_normalised_latent_and_the_rotated_shared_key() -> None:
    mla, cfg = make_mla()
    cache, x = LatentCache(cfg, 2, 9), randn(2, 6, cfg.hidden_size)
    for start, new in ((0, 4), (4, 2)):
        positions = cache.begin(new)
        assert positions.tolist() == [list(range(start, start + new))] * 2
        mla(x[:, start : start + new], *RotaryEmbedding(cfg)(positions), cache=cache)
        cache.commit()
    joint = x @ mla.kv_a_proj_with_mqa.weight.T
    latent = literal_norm(joint[..., :12], mla.kv_a_layernorm.weight, 1e-6)
    cos, sin = angles(cfg, 6)
    keys = torch.stack([torch.stack([turn(joint[b, t, 12:], cos[t], sin[t]) for t in range(6)]) for b in range(2)])
    assert cache.store.shape == (cfg.num_hidden_layers, 2, 9, 12 + 6) and cache.lengths == [6, 6]
    torch.testing.assert_close(cache.store[0, :, :6], torch.cat((latent, keys), -1), atol=2e-6, rtol=1e-5)
    assert not cache.store[0, :, 6:].any() and not cache.store[1:].any()


def test_the_cache_of_v3_takes_70272_bytes_a_token() -> None:
    cache = LatentCache(ModelConfig.preset("v3-671b"), 1, 1, dtype=torch.bfloat16, device="meta")
    assert cache.bytes_per_token == 70_272  # 61 layers, 512 + 64 numbers of 2 bytes


@torch.no_grad()
@pytest.mark.parametrize("path", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("chunks", [[9], [5, 1, 1, 1, 1], [4, 3, 2], [1] * 9])
@pytest.mark.parametrize("name", CONFIGS)
def test_any_way_of_cutting_the_text_equals_one_pass(path: str, chunks: list[int], name: str) -> None:
    mla, cfg = make_mla(**CONFIGS[name])
    x, cache = randn(2, 9, cfg.hidden_size), LatentCache(cfg, 2, 12)
    pieces = []
    for piece in x.split(chunks, dim=1):
        pieces.append(mla(piece, *RotaryEmbedding(cfg)(cache.begin(piece.shape[1])), cache=cache, path=path))
        cache.commit()
    expected = mla(x, *angles(cfg, 9), path="expanded")
    torch.testing.assert_close(torch.cat(pieces, 1), expected, atol=3e-6, rtol=1e-5)


@torch.no_grad()
def test_a_long_context_with_a_single_query_is_as_exact() -> None:
    mla, cfg = make_mla(max_position_embeddings=2048, rope_scaling=small_yarn())
    x, cache = randn(1, 700, cfg.hidden_size), LatentCache(cfg, 1, 700)
    expected = mla(x, *angles(cfg, 700))
    mla(x[:, :699], *RotaryEmbedding(cfg)(cache.begin(699)), cache=cache)
    cache.commit()
    out = mla(x[:, 699:], *RotaryEmbedding(cfg)(cache.begin(1)), cache=cache)
    torch.testing.assert_close(out, expected[:, 699:], atol=3e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("path", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("lengths", [[2, 5], [5, 4], [0, 5], [5, 0]])
def test_rows_at_different_positions(path: str, lengths: list[int]) -> None:
    """Each row continues where it stands and reads its own past only, a row without a past too."""
    mla, cfg = make_mla(rope_scaling=small_yarn())
    x, cache = randn(2, 9, cfg.hidden_size), LatentCache(cfg, 2, 12)
    mla(x[:, :5], *RotaryEmbedding(cfg)(cache.begin(5)), cache=cache)
    cache.commit()
    cache.crop(lengths)
    for new in (1, 3):
        at = list(cache.lengths)
        positions = cache.begin(new)
        assert positions[:, 0].tolist() == at
        piece = torch.stack([x[b, at[b] : at[b] + new] for b in range(2)])
        out = mla(piece, *RotaryEmbedding(cfg)(positions), cache=cache, path=path)
        cache.commit()
        for b in range(2):
            alone = mla(x[b : b + 1, : at[b] + new], *angles(cfg, at[b] + new))
            torch.testing.assert_close(out[b], alone[0, at[b] :], atol=3e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("path", ["expanded", "absorbed"])
def test_what_lies_beyond_a_rows_length_is_never_read(path: str) -> None:
    mla, cfg = make_mla()
    x = randn(2, 4, cfg.hidden_size)
    outs = []
    for rubbish in (0.0, 1e4):
        cache = LatentCache(cfg, 2, 12)
        mla(x, *RotaryEmbedding(cfg)(cache.begin(4)), cache=cache)
        cache.commit()
        cache.crop([1, 3])
        cache.store[:, 0, 1:] = rubbish
        cache.store[:, 1, 3:] = rubbish
        outs.append(mla(x[:, :2], *RotaryEmbedding(cfg)(cache.begin(2)), cache=cache, path=path))
    torch.testing.assert_close(outs[0], outs[1], atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("path", ["expanded", "absorbed"])
def test_no_token_sees_a_later_one(path: str) -> None:
    mla, cfg = make_mla()
    x, (cos, sin) = randn(1, 6, cfg.hidden_size), angles(cfg, 6)
    for changed in range(6):
        other = x.clone()
        other[0, changed] += 1.0
        difference = (mla(x, cos, sin, path=path) - mla(other, cos, sin, path=path)).abs().amax((0, 2))
        assert (difference[:changed] < 1e-6).all() and (difference[changed:] > 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize("path", ["expanded", "absorbed"])
def test_only_relative_positions_matter(path: str) -> None:
    mla, cfg = make_mla()
    x = randn(1, 6, cfg.hidden_size)
    here, there = (mla(x, *angles(cfg, 6, start), path=path) for start in (0, 41))
    torch.testing.assert_close(here, there, atol=2e-5, rtol=1e-4)
    cos, sin = RotaryEmbedding(cfg)(torch.arange(6) * 2)
    assert (mla(x, cos, sin, path=path) - here).abs().max() > 1e-3


@torch.no_grad()
def test_an_unknown_path_and_a_cache_that_does_not_fit_are_refused_by_name() -> None:
    model = DeepSeekV3(small_config())
    tokens = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(InputError, match=r"3 rows.*2 rows"):
        model(tokens, cache=LatentCache(model.cfg, 3, 9))
    with pytest.raises(InputError, match=r"float32.*bfloat16"):
        model.to(torch.bfloat16)(tokens, cache=LatentCache(model.cfg, 2, 9))
    model.attention_path = "fast"
    with pytest.raises(InputError, match=r"fast.*auto, expanded or absorbed"):
        model(tokens)


def test_a_full_cache_and_a_wrong_crop_are_refused_by_name() -> None:
    _, cfg = make_mla()
    cache = LatentCache(cfg, 2, 4)
    with pytest.raises(InputError, match=r"room for 4 tokens.*5 more"):
        cache.begin(5)
    cache.begin(3)
    cache.commit()
    with pytest.raises(InputError, match=r"row 1.*3 tokens.*4"):
        cache.crop([2, 4])
    assert cache.lengths == [3, 3]
