"""Exercise 4.1: the cache of a whole model."""

from __future__ import annotations

from torch import Generator

from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_04.inputs import small_config


def cache_bytes(config, bytes_per_number=2):
    """A ModelConfig -> bytes that one token takes in the cache, over all layers."""
    numbers = config.kv_lora_rank + config.qk_rope_head_dim  # the latent and the shared key
    return numbers * config.num_hidden_layers * bytes_per_number


def cache_bytes_cases(generator: Generator) -> list[Case]:
    return [
        Case((small_config(generator),), note="two bytes a number"),
        Case((small_config(generator), 4), note="four bytes a number"),
        Case((small_config(generator), 1), note="one byte a number"),
    ]


def cache_bytes__of(numbers):
    return lambda config, bytes_per_number=2: numbers(config) * config.num_hidden_layers * bytes_per_number


CACHE_BYTES = Exercise(
    id="4.1",
    idea="mla",
    title="The cache of a whole model",
    minutes=5,
    answer="cache_bytes",
    reference=cache_bytes,
    cases=cache_bytes_cases,
    mistakes=(
        Mistake(
            "latent alone",
            cache_bytes__of(lambda c: c.kv_lora_rank),
            "That is the latent alone. It carries no position: what else has to be in the cache for the scores?",
        ),
        Mistake(
            "positional key alone",
            cache_bytes__of(lambda c: c.qk_rope_head_dim),
            "That is the positional key alone. Content keys and values have to come from something in the cache, too.",
        ),
        Mistake(
            "one layer",
            lambda config, bytes_per_number=2: config.cache_width * bytes_per_number,
            "That is one layer. Every layer has a cache of its own.",
        ),
        Mistake(
            "numbers",
            lambda config, bytes_per_number=2: config.cache_width * config.num_hidden_layers,
            "You count numbers, and bytes are asked for: how many does each number take?",
        ),
        Mistake(
            "always two bytes",
            lambda config, bytes_per_number=2: config.cache_width * config.num_hidden_layers * 2,
            "You always take two bytes a number. The function is told how many, in `bytes_per_number`.",
        ),
        Mistake(
            "keys and values",
            cache_bytes__of(lambda c: 2 * c.cache_width),
            "You count everything twice, as if keys and values were cached apart. They come out of one latent, which "
            "is cached once.",
        ),
        Mistake(
            "latent twice",
            cache_bytes__of(lambda c: 2 * c.kv_lora_rank + c.qk_rope_head_dim),
            "You count the latent twice, once for the keys and once for the values. Both come out of the same one.",
        ),
        Mistake(
            "positional key of each head",
            cache_bytes__of(lambda c: c.kv_lora_rank + c.num_attention_heads * c.qk_rope_head_dim),
            "You count a positional key for each head. All heads share one.",
        ),
        Mistake(
            "all for each head",
            cache_bytes__of(lambda c: c.num_attention_heads * c.cache_width),
            "You multiply by the number of heads. Neither the latent nor the positional key belongs to a head.",
        ),
        Mistake(
            "content key",
            cache_bytes__of(lambda c: c.kv_lora_rank + c.qk_nope_head_dim),
            "You add the width of the content part of a key. That part comes out of the latent again; it is the part "
            "with the position that cannot.",
        ),
        Mistake(
            "one value",
            cache_bytes__of(lambda c: c.kv_lora_rank + c.v_head_dim),
            "You add the width of a value. Values come out of the latent again; what else do the scores need?",
        ),
        Mistake(
            "no brackets",
            lambda config, bytes_per_number=2: (
                config.kv_lora_rank + config.qk_rope_head_dim * config.num_hidden_layers * bytes_per_number
            ),
            "Only the second width is multiplied: a product binds more tightly than a sum, so brackets are missing.",
        ),
        Mistake(
            "hidden state",
            cache_bytes__of(lambda c: c.hidden_size),
            "That is a cache of hidden states. All keys could be made from them, but MLA keeps less than that.",
        ),
        Mistake(
            "sizes of V3",
            cache_bytes__of(lambda c: 512 + 64),
            "You use the widths of V3. The function is given a config: take the widths from it.",
        ),
        Mistake(
            "answer for V3",
            lambda config, bytes_per_number=2: 70_272,
            "That is the number for V3. The function is given a config, and should work for any.",
        ),
        Mistake(
            "plain attention",
            cache_bytes__of(lambda c: 2 * c.num_attention_heads * c.v_head_dim),
            "That is the cache of plain attention, with keys and values of all heads.",
        ),
        Mistake(
            "query latent",
            cache_bytes__of(lambda c: c.q_lora_rank + c.cache_width),
            "You count the latent of the queries, too. Queries are used once, at their own step, and never cached.",
        ),
        Mistake(
            "expanded",
            cache_bytes__of(lambda c: c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim)),
            "That is the cache of the expanded keys and values of all heads. They can be made again from something "
            "much smaller.",
        ),
    ),
    hints=(
        "Look at the picture under `attend`: two boxes have a double frame. How wide is each of them?",
        "One token leaves these two vectors in every layer: multiply by the layers, then by the bytes a number.",
        "The widths are `config.kv_lora_rank` and `config.qk_rope_head_dim`; the layers are "
        "`config.num_hidden_layers`.",
    ),
    after="Try cache_bytes(v3): it is the number of the table above.",
)
