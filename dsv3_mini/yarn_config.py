"""The settings of YaRN, which extends the context (report §4.3). No torch in here, as in `config`."""

from __future__ import annotations

from dataclasses import dataclass

from dsv3_mini.checks import is_count, is_number, require


@dataclass(frozen=True)
class YarnConfig:
    """YaRN context extension of the rotary positions (§4.3). Present in a config means switched on.

    The released code switches YaRN on by how long a buffer somebody allocates (D12); here it is
    an explicit choice. Defaults are the report's: s = 40, alpha = 1, beta = 32, sqrt(t) = 0.1 ln s + 1.
    """

    factor: float = 40.0  # s: the context becomes this many times longer
    original_max_position_embeddings: int = 4096  # the length the model was pre-trained with
    beta_fast: float = 32.0  # pairs that turn more often than this within the original length stay as they are
    beta_slow: float = 1.0  # pairs that turn less often than this are slowed down by the whole factor
    mscale: float = 1.0  # with mscale_all_dim: cos and sin are multiplied by the ratio of the two (1 in V3)
    mscale_all_dim: float = 1.0  # the softmax scale is multiplied by (0.1 * mscale_all_dim * ln s + 1)^2

    def __post_init__(self) -> None:
        for name in ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            require(is_number(getattr(self, name)), f"rope_scaling.{name}", getattr(self, name), "a finite number")
        require(self.factor >= 1, "rope_scaling.factor", self.factor, "at least 1")
        require(
            is_count(self.original_max_position_embeddings),
            "rope_scaling.original_max_position_embeddings",
            self.original_max_position_embeddings,
            "a whole number of at least 1",
        )
        require(
            self.beta_fast >= self.beta_slow > 0,
            "rope_scaling.beta_fast and beta_slow",
            (self.beta_fast, self.beta_slow),
            "beta_fast >= beta_slow > 0",
        )
        for name in ("mscale", "mscale_all_dim"):
            require(getattr(self, name) >= 0, f"rope_scaling.{name}", getattr(self, name), "at least 0")
