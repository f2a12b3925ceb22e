"""A run small enough to train in a second: tiny model, tiny text of its own, token cache in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3_mini.config import ModelConfig
from dsv3_mini.train.config import TrainConfig

_MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=32,
    num_hidden_layers=2,
    first_k_dense_replace=1,
    intermediate_size=48,
    num_attention_heads=2,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=8,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    n_group=2,
    topk_group=1,
    max_position_embeddings=64,
)


@pytest.fixture(scope="session")
def tiny_model() -> ModelConfig:
    return _MODEL


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few kilobytes of text, every paragraph another."""
    lines = [f"{n} times {n + 3} is {n * (n + 3)}, and naïve counting to {n} takes {n} steps.\n" for n in range(300)]
    path = tmp_path_factory.mktemp("text") / "counting.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_run(
    tmp_path: Path, tiny_text: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainConfig]:
    """`tiny_run(steps=.., out=.., ...)`: settings of a run with the tiny model on the tiny text, on the CPU."""
    monkeypatch.setenv("DSV3_MINI_CACHE", str(tiny_cache))

    def make(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = dict(
            out=tmp_path / "run", steps=12, text=tiny_text, device="cpu", seq_len=16, batch_tokens=64,
            micro_batch_tokens=32, lr=5e-3, bias_update_speed=0.01, checkpoint_every=6, model=_MODEL,
        )  # fmt: skip
        return TrainConfig(**{**settings, **changes})

    return make
