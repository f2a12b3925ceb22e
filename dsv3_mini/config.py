"""What a DeepSeek-V3 is made of: `ModelConfig` (report §4.2, "Model Hyper-Parameters").

Fields carry the names of the released `config.json`, so that a config can be compared with the original line
by line. A config is frozen, and checked once, when it is made: whoever holds one holds one that can be built.

No torch in here: `dsv3-mini --help` and `dsv3-mini params` read configs without paying for that import.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dsv3_mini.checks import is_count, is_number, require
from dsv3_mini.errors import InputError
from dsv3_mini.presets import PRESETS as PRESETS  # both: `config` is where people look for them
from dsv3_mini.yarn_config import YarnConfig as YarnConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and choices of one model. The report's symbols stand behind the fields.

    Raises `InputError` that names the field when the values cannot make a model.
    """

    # Width and depth
    vocab_size: int  # V
    hidden_size: int  # d
    num_hidden_layers: int  # L, without the MTP modules
    first_k_dense_replace: int = 1  # layers whose FFN is dense, from the bottom (3 of 61 in V3); L + D: all of them
    intermediate_size: int  # width of a dense FFN; V3: exactly (K_r + N_s) experts wide
    num_nextn_predict_layers: int = 1  # D, depth of multi-token prediction (§2.2); its modules are layers L, L + 1, ..

    # Multi-head latent attention (§2.1.1)
    num_attention_heads: int  # n_h
    q_lora_rank: int | None  # d_c', query compression; None: queries are not compressed
    kv_lora_rank: int  # d_c, the latent that is cached
    qk_nope_head_dim: int  # d_h, the part of query and key without position
    qk_rope_head_dim: int  # d_h^R, the part with position
    v_head_dim: int  # d_h again in V3; its own field as in the released config

    # Plain attention instead of MLA, to compare with it. None: MLA. A number: keys and values of so many heads, as many
    # as query heads (MHA), fewer (GQA) or one (MQA); heads are then qk_rope_head_dim wide, and no rank is used.
    plain_kv_heads: int | None = None

    # Mixture of experts (§2.1.2)
    n_routed_experts: int  # N_r
    n_shared_experts: int = 1  # N_s
    num_experts_per_tok: int  # K_r
    moe_intermediate_size: int  # width of one expert
    n_group: int = 1  # groups of experts ("nodes"; 8 in V3)
    topk_group: int = 1  # M, groups that a token may use
    norm_topk_prob: bool = True  # Eq. 13: the chosen gates are made to sum to one
    routed_scaling_factor: float = 1.0  # then multiplied by this; 2.5 in the release, absent from the report (D1)
    balance_loss_alpha: float = 1e-4  # alpha of the sequence-wise balance loss, Eq. 17; 0 switches it off
    batch_balance_loss_alpha: float = 0.0  # the same for the batch-wise loss of §4.5.3, which V3 does not use

    # Positions
    max_position_embeddings: int  # tokens in the context
    rope_theta: float = 10000.0
    rope_scaling: YarnConfig | None = None

    # Numerics and initialisation
    rms_norm_eps: float = 1e-6  # block norms; the norms inside MLA use 1e-6 whatever this says, like the reference
    initializer_range: float | None = (
        None  # None: normal with std 1/sqrt(fan-in), an embedding row counting as fan-in 1 (D18)
    )

    # Special tokens
    bos_token_id: int | None = None
    eos_token_id: int | None = 0

    def __post_init__(self) -> None:
        counts = (
            "vocab_size hidden_size num_hidden_layers intermediate_size num_attention_heads kv_lora_rank "
            "qk_rope_head_dim v_head_dim n_routed_experts n_shared_experts num_experts_per_tok "
            "moe_intermediate_size n_group topk_group max_position_embeddings"
        ).split()
        for name in counts:
            require(is_count(getattr(self, name)), name, getattr(self, name), "a whole number of at least 1")
        for name in ("first_k_dense_replace", "num_nextn_predict_layers", "qk_nope_head_dim"):
            value = getattr(self, name)
            require(is_count(value, least=0), name, value, "a whole number of at least 0")
        require(
            self.q_lora_rank is None or is_count(self.q_lora_rank),
            "q_lora_rank",
            self.q_lora_rank,
            "a whole number of at least 1, or None for queries that are not compressed",
        )
        layers = self.num_hidden_layers + self.num_nextn_predict_layers
        require(
            self.first_k_dense_replace <= layers,
            "first_k_dense_replace",
            self.first_k_dense_replace,
            f"at most num_hidden_layers + num_nextn_predict_layers = {layers}",
        )
        require(
            self.qk_rope_head_dim % 2 == 0,
            "qk_rope_head_dim",
            self.qk_rope_head_dim,
            "an even number, because RoPE turns pairs",
        )
        self._check_plain_attention()
        self._check_routing()
        for name in ("rope_theta", "rms_norm_eps", "routed_scaling_factor"):
            require(
                is_number(getattr(self, name)) and getattr(self, name) > 0,
                name,
                getattr(self, name),
                "a finite number above 0",
            )
        for name in ("balance_loss_alpha", "batch_balance_loss_alpha"):
            value = getattr(self, name)
            require(is_number(value) and value >= 0, name, value, "at least 0")
        require(
            self.initializer_range is None or (is_number(self.initializer_range) and self.initializer_range > 0),
            "initializer_range",
            self.initializer_range,
            "above 0, or None for 1/sqrt(fan-in)",
        )
        require(
            self.rope_scaling is None or isinstance(self.rope_scaling, YarnConfig),
            "rope_scaling",
            self.rope_scaling,
            "a YarnConfig, or None for plain RoPE",
        )
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            ok = value is None or (isinstance(value, int) and 0 <= value < self.vocab_size)
            require(ok, name, value, f"None or a token id below vocab_size = {self.vocab_size}")

    def _check_plain_attention(self) -> None:
        """MLA has a part without position in each head; plain attention turns whole heads, and knows no YaRN here."""
        heads, groups = self.num_attention_heads, self.plain_kv_heads
        if groups is None:
            require(self.qk_nope_head_dim >= 1, "qk_nope_head_dim", self.qk_nope_head_dim, "at least 1 with MLA")
            return
        ok = is_count(groups) and heads % groups == 0
        require(ok, "plain_kv_heads", groups, f"None for MLA, or a divisor of num_attention_heads = {heads}")
        require(self.qk_nope_head_dim == 0, "qk_nope_head_dim", self.qk_nope_head_dim, "0 with plain_kv_heads")
        width = self.qk_rope_head_dim
        require(self.v_head_dim == width, "v_head_dim", self.v_head_dim, f"qk_rope_head_dim = {width} in plain heads")
        require(self.rope_scaling is None, "rope_scaling", self.rope_scaling, "None with plain_kv_heads")

    def _check_routing(self) -> None:
        require(
            self.n_routed_experts % self.n_group == 0,
            "n_routed_experts",
            self.n_routed_experts,
            f"a multiple of n_group = {self.n_group}, so that all groups are of one size",
        )
        require(self.topk_group <= self.n_group, "topk_group", self.topk_group, f"at most n_group = {self.n_group}")
        group_size = self.n_routed_experts // self.n_group
        require(
            self.n_group == 1 or group_size >= 2,
            "n_group",
            self.n_group,
            f"at most n_routed_experts / 2 = {self.n_routed_experts // 2}: a group is ranked by its two best experts",
        )
        reachable = self.topk_group * group_size
        require(
            self.num_experts_per_tok <= reachable,
            "num_experts_per_tok",
            self.num_experts_per_tok,
            f"at most {reachable}, the experts in the topk_group = {self.topk_group} groups that a token may use",
        )

    @property
    def qk_head_dim(self) -> int:
        """d_h + d_h^R: the width of one query or key, content and position together."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_width(self) -> int:
        """Numbers cached per token and layer: the latent and the shared rotary key, d_c + d_h^R.

        With plain attention a key and a value for each key/value head.
        """
        if self.plain_kv_heads is not None:
            return 2 * self.plain_kv_heads * self.v_head_dim
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """MoE layers, MTP modules included: layers with a router and thus with a routing bias."""
        return self.num_hidden_layers - self.first_k_dense_replace + self.num_nextn_predict_layers

    def dense_twin(self) -> ModelConfig:
        """The same model without experts and with as many active parameters: every FFN dense, that of MTP too.

        A dense FFN as wide as the experts that one token uses multiplies as many numbers. Left out is what the router
        adds to them (its N_r centroids of width d in every MoE layer; under 2 % of a layer in the presets).
        """
        return self._dense(self.num_experts_per_tok + self.n_shared_experts)

    def dense_total(self) -> ModelConfig:
        """The same model without experts and with as many parameters in all, in the main model: wide dense FFNs.

        Every FFN gets the mean width of those it replaces, the dense ones at the bottom included, so that the sum is
        that of the MoE model but for its routers. Each parameter then works for each token.
        """
        return self._dense(self.n_routed_experts + self.n_shared_experts)

    def _dense(self, experts: int) -> ModelConfig:
        """Every FFN dense; one that stands for an MoE layer counts as `experts` experts. All get the mean width."""
        depth, dense = self.num_hidden_layers, min(self.first_k_dense_replace, self.num_hidden_layers)
        width = dense * self.intermediate_size + (depth - dense) * experts * self.moe_intermediate_size
        return self.replace(
            first_k_dense_replace=depth + self.num_nextn_predict_layers, intermediate_size=round(width / depth)
        )

    def with_yarn(self, factor: float, original: int) -> ModelConfig:
        """The same model reading `factor` times as far as the `original` tokens that it was trained with (§4.3).

        The weights stay as they are; `model.long_context.extended` gives a loaded model this config. Raises
        `InputError` for a factor below 1, or for plain attention, which knows no YaRN here.
        """
        yarn = YarnConfig(factor=factor, original_max_position_embeddings=original)
        reach = max(self.max_position_embeddings, int(factor * original))
        return self.replace(rope_scaling=yarn, max_position_embeddings=reach)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ModelConfig:
        """One of the configs of the course (`nano`, `mini`, `small`, `v3-671b`), with fields changed by keyword.

        >>> ModelConfig.preset("v3-671b").kv_lora_rank
        512
        """
        if name not in PRESETS:
            raise InputError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
        unknown = sorted(set(changes) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise InputError(f"ModelConfig has no field {unknown[0]!r}")
        return cls(**{**PRESETS[name], **changes})

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked like a new one."""
        unknown = sorted(set(changes) - {f.name for f in dataclasses.fields(self)})
        if unknown:
            raise InputError(f"ModelConfig has no field {unknown[0]!r}")
        return dataclasses.replace(self, **changes)
