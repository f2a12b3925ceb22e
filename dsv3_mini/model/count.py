"""The sizes of a model by arithmetic alone: parameters and cache bytes (report §4.2; no torch).

The report says "671B total parameters, of which 37B are activated for each token". Both follow from the config,
and this module is that calculation, component by component. What counts as activated is a choice that the report
does not spell out (fact D20): for V3 it is 37.55 billion with the input embedding table and 36.63 billion without
it. A lookup reads one row of that table and multiplies nothing, so the second is the better measure of work.

The MTP modules are counted apart, because the report's totals leave them out and because inference can drop them.
Their embedding and output head are those of the main model and count once.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3_mini.config import ModelConfig


@dataclass(frozen=True)
class Component:
    """One row of the table: parameters that exist, and parameters that one token passes through."""

    name: str
    total: int
    active: int


@dataclass(frozen=True)
class ParameterCount:
    """The table of one model: the main model's rows, and those of its MTP modules."""

    components: tuple[Component, ...]
    mtp: tuple[Component, ...]

    @property
    def total(self) -> int:
        """All parameters of the main model; 671,026,419,200 for V3."""
        return sum(row.total for row in self.components)

    @property
    def active(self) -> int:
        """Parameters that work for one token, embedding table and output head included."""
        return sum(row.active for row in self.components)

    @property
    def active_without_embedding(self) -> int:
        """The same without the input embedding table, which is a lookup."""
        return self.active - self["input embedding"].active

    @property
    def mtp_total(self) -> int:
        """What the MTP modules add, without the embedding and head that they share with the main model."""
        return sum(row.total for row in self.mtp)

    @property
    def mtp_active(self) -> int:
        """Of these, what works for one token."""
        return sum(row.active for row in self.mtp)

    def __getitem__(self, name: str) -> Component:
        """A row of the main model by its name."""
        return next(row for row in self.components if row.name == name)


def count_parameters(cfg: ModelConfig) -> ParameterCount:
    """Count the parameters of `cfg` by component, as the report's total counts them (the routing bias included)."""
    d, moe_layers = cfg.hidden_size, max(cfg.num_hidden_layers - cfg.first_k_dense_replace, 0)
    main = (
        Component("input embedding", cfg.vocab_size * d, cfg.vocab_size * d),
        *_blocks(cfg, cfg.num_hidden_layers, moe_layers),
        Component("final norm", d, d),
        Component("output head", cfg.vocab_size * d, cfg.vocab_size * d),
    )
    depths = cfg.num_nextn_predict_layers
    mtp: tuple[Component, ...] = ()
    if depths:
        mtp = (
            Component("joining projection", depths * 2 * d * d, depths * 2 * d * d),  # eh_proj, the M_k of Eq. 21
            *_blocks(cfg, depths, cfg.num_moe_layers - moe_layers),
            Component("MTP norms", depths * 3 * d, depths * 3 * d),  # enorm, hnorm and the norm before the shared head
        )
    return ParameterCount(main, mtp)


def attention_parameters(cfg: ModelConfig) -> int:
    """Parameters of one attention layer: MLA (Eq. 1-11) with its two inner norms, 187,107,328 for V3; or plain."""
    d, heads, q_rank, latent = cfg.hidden_size, cfg.num_attention_heads, cfg.q_lora_rank, cfg.kv_lora_rank
    if cfg.plain_kv_heads is not None:
        return d * cfg.v_head_dim * 2 * (heads + cfg.plain_kv_heads)  # query and output, keys and values
    if q_rank is None:
        query = d * heads * cfg.qk_head_dim
    else:
        query = d * q_rank + q_rank + q_rank * heads * cfg.qk_head_dim  # W^DQ, norm, [W^UQ; W^QR]
    key_value = d * cfg.cache_width + latent  # [W^DKV; W^KR], norm
    key_value += latent * heads * (cfg.qk_nope_head_dim + cfg.v_head_dim)  # [W^UK; W^UV]
    return query + key_value + heads * cfg.v_head_dim * d  # and W^O


def cache_bytes_per_token(cfg: ModelConfig, bytes_per_number: int = 2) -> int:
    """Bytes that one token adds to the cache of the main model: the latent and the rotary key in every layer.

    With BF16 (two bytes a number) V3 needs 61 * (512 + 64) * 2 = 70,272.
    """
    return cfg.num_hidden_layers * cfg.cache_width * bytes_per_number


def _blocks(cfg: ModelConfig, layers: int, moe_layers: int) -> tuple[Component, ...]:
    """The rows of `layers` transformer blocks, the last `moe_layers` of them with experts; no rows that are 0."""
    d = cfg.hidden_size
    expert = 3 * d * cfg.moe_intermediate_size  # gate, up and down projection
    same = {
        "latent attention" if cfg.plain_kv_heads is None else "attention": layers * attention_parameters(cfg),
        "dense FFN": (layers - moe_layers) * 3 * d * cfg.intermediate_size,
        "shared experts": moe_layers * cfg.n_shared_experts * expert,
        "router centroids": moe_layers * cfg.n_routed_experts * d,  # the e_i of Eq. 15
        "routing bias": moe_layers * cfg.n_routed_experts,  # the b_i of Eq. 16; moved by rule, not by gradient
        "block norms": layers * 2 * d,
    }
    rows = [Component(name, size, size) for name, size in same.items()]
    routed = moe_layers * expert
    rows.insert(2, Component("routed experts", routed * cfg.n_routed_experts, routed * cfg.num_experts_per_tok))
    return tuple(row for row in rows if row.total)
