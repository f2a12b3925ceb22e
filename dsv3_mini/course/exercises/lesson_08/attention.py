"""Exercise 8.1: parameters of one attention layer."""

from __future__ import annotations

from torch import Generator

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_08.inputs import _config


def attention_parameters(config):
    d, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    key = config.qk_nope_head_dim + config.qk_rope_head_dim
    if config.q_lora_rank is None:
        queries = d * heads * key
    else:
        queries = d * config.q_lora_rank + config.q_lora_rank + config.q_lora_rank * heads * key  # down, norm, up
    keys_values = d * (latent + config.qk_rope_head_dim) + latent  # down with the shared key, norm
    keys_values += latent * heads * (config.qk_nope_head_dim + config.v_head_dim)  # up
    return queries + keys_values + heads * config.v_head_dim * d  # and W^O


def _attention(q_norm=1, kv_norm=1, rope_keys="one", out="v", up="both", query="whole", rope_down=1):
    """The count above with one of its parts changed."""

    def wrong(config):
        d, heads, latent, rank = (
            config.hidden_size, config.num_attention_heads, config.kv_lora_rank, config.q_lora_rank
        )  # fmt: skip
        nope, rope, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        key = {"whole": nope + rope, "content": nope}[query]
        queries = d * heads * key if rank is None else d * rank + q_norm * rank + rank * heads * key
        down = d * (latent + rope_down * rope * (heads if rope_keys == "each" else 1)) + kv_norm * latent
        wide = {"both": nope + v, "whole keys": nope + rope + v, "keys": nope, "twice": 2 * nope}[up]
        return queries + down + latent * heads * wide + heads * d * {"v": v, "nope": nope, "key": nope + rope}[out]

    return wrong


def _plain(config):
    return 4 * config.hidden_size * config.num_attention_heads * config.qk_nope_head_dim


def _attention_configs(generator: Generator) -> list[Case]:
    return [
        Case((_config(generator),), note="compressed queries"),
        Case((_config(generator, q_lora_rank=None),), note="queries that are not compressed (q_lora_rank None)"),
        Case((ModelConfig.preset("v3-671b"),), note="the sizes of V3"),
    ]


ATTENTION_PARAMETERS = Exercise(
    id="8.1",
    idea="mla",
    title="parameters of one attention layer, for any config",
    minutes=10,
    answer="attention_parameters",
    reference=attention_parameters,
    cases=_attention_configs,
    mistakes=(
        Mistake(
            "no norms",
            _attention(q_norm=0, kv_norm=0),
            "The two norms behind the compressed latents are missing: one weight for each channel of a latent.",
        ),
        Mistake(
            "no norm of the queries",
            _attention(q_norm=0),
            "The norm behind the compressed queries is missing.",
        ),
        Mistake(
            "no norm of the latent",
            _attention(kv_norm=0),
            "The norm behind the latent of keys and values is missing.",
        ),
        Mistake(
            "a positional key for each head",
            _attention(rope_keys="each"),
            "The positional key is counted once for every head. All heads share one (lesson 04).",
        ),
        Mistake(
            "no positional key",
            _attention(rope_down=0),
            "The positional key is missing: it is made from the hidden state, beside the latent.",
        ),
        Mistake(
            "positional keys out of the latent",
            _attention(up="whole keys"),
            "The up-projection makes the content of keys, and values. The positional part does not come from there.",
        ),
        Mistake(
            "values as wide as keys",
            _attention(up="twice"),
            "Values have a width of their own, v_head_dim; you count them as wide as the content of a key.",
        ),
        Mistake(
            "no values",
            _attention(up="keys"),
            "The up-projection of the values is missing.",
        ),
        Mistake(
            "output of the width of keys",
            _attention(out="nope"),
            "W^O reads the values of all heads, so v_head_dim decides its size.",
        ),
        Mistake(
            "output of the width of whole keys",
            _attention(out="key"),
            "W^O reads values, and you gave it the width of whole keys.",
        ),
        Mistake(
            "queries without position",
            _attention(query="content"),
            "Each head has a positional query, too: a query is as wide as a whole key.",
        ),
        Mistake(
            "one positional query",
            lambda config: (
                attention_parameters(config)
                - (config.q_lora_rank or config.hidden_size)
                * config.qk_rope_head_dim
                * (config.num_attention_heads - 1)
            ),
            "The positional query is counted once. Only the key is shared: every head has a positional query.",
        ),
        Mistake(
            "no output matrix",
            lambda config: (
                attention_parameters(config) - config.num_attention_heads * config.v_head_dim * config.hidden_size
            ),
            "W^O is missing, the matrix behind the heads.",
        ),
        Mistake(
            "block norms",
            lambda config: attention_parameters(config) + 2 * config.hidden_size,
            "The two norms of the block are counted. They stand in front of the sub-layers and belong to the block.",
        ),
        Mistake(
            "all layers",
            lambda config: attention_parameters(config) * config.num_hidden_layers,
            "That is the sum over all layers; one layer is asked for.",
        ),
        Mistake("plain attention", _plain, "That is plain multi-head attention: four matrices, no compression."),
    ),
    hints=(
        "Go through the names: q_a_proj, q_a_layernorm, q_b_proj, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, "
        "o_proj. A matrix counts rows times columns, a norm its width.",
        "kv_a_proj_with_mqa reads hidden_size and gives the latent and one positional key. kv_b_proj reads the latent "
        "and gives, for each head, the content of a key and a value.",
        "Without compression of queries (q_lora_rank is None) there is one matrix, q_proj, in place of the three.",
    ),
    after="It must be 187,107,328 for V3, and the check has asked for that as well.",
)
