"""Exercise 4.3: the factor in front of the scores."""

from __future__ import annotations

from dsv3_mini import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_04.inputs import small_config


def score_scale(config):
    """A ModelConfig -> the factor in front of q . k."""
    return (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5


def score_scale__content_only(config):
    """A ModelConfig -> the factor in front of q . k."""
    return config.qk_nope_head_dim**-0.5


SCORE_SCALE = Exercise(
    id="4.3",
    idea="mla",
    title="The factor in front of the scores",
    minutes=5,
    answer="score_scale",
    reference=score_scale,
    cases=lambda generator: [Case((small_config(generator),)), Case((ModelConfig.preset("v3-671b"),), note="V3")],
    mistakes=(
        Mistake(
            "content width",
            score_scale__content_only,
            "That is the width of the content part. The scores of a key add up over both of its parts.",
        ),
        Mistake(
            "positional width",
            lambda config: config.qk_rope_head_dim**-0.5,
            "That is the width of the positional part. The scores of a key add up over both of its parts.",
        ),
        Mistake(
            "value width",
            lambda config: config.v_head_dim**-0.5,
            "That is the width of a value. Values play no part in a score: look at the width of a whole key.",
        ),
        Mistake(
            "latent width",
            lambda config: config.kv_lora_rank**-0.5,
            "That is the width of the latent. Scores compare queries with keys, and these are narrower.",
        ),
        Mistake(
            "cache width",
            lambda config: config.cache_width**-0.5,
            "That is the width of what is cached. In the absorbed form of lesson 05 the vectors are as wide as that, "
            "but the scores are the same numbers, so their scale is the same, too.",
        ),
        Mistake(
            "with the value",
            lambda config: (config.qk_head_dim + config.v_head_dim) ** -0.5,
            "You add the width of a value. Values play no part in a score.",
        ),
        Mistake(
            "all heads",
            lambda config: (config.num_attention_heads * config.qk_head_dim) ** -0.5,
            "You take the keys of all heads together. Each head has scores of its own, from one key.",
        ),
        Mistake(
            "positional parts of all heads",
            lambda config: (config.qk_nope_head_dim + config.num_attention_heads * config.qk_rope_head_dim) ** -0.5,
            "You count the positional part once for every head. A key of one head has it once.",
        ),
        Mistake(
            "hidden size",
            lambda config: config.hidden_size**-0.5,
            "That is the width of a token. Scores compare the queries and keys of one head.",
        ),
        Mistake(
            "width itself",
            lambda config: config.qk_head_dim,
            "That is the width of a key. What is asked for is the factor that it leads to (Eq. 10).",
        ),
        Mistake(
            "answer for V3",
            lambda config: 192**-0.5,
            "That is the number for V3. The function is given a config, and should work for any.",
        ),
        Mistake(
            "model width",
            lambda config: (config.hidden_size / config.num_attention_heads) ** -0.5,
            "You divide the width of a token among the heads, as in plain attention. In MLA the width of a head is "
            "chosen freely.",
        ),
        Mistake(
            "two roots",
            lambda config: config.qk_nope_head_dim**-0.5 + config.qk_rope_head_dim**-0.5,
            "You take two roots and add them. Add the widths first: it is one key of two parts.",
        ),
        Mistake(
            "product",
            lambda config: (config.qk_nope_head_dim * config.qk_rope_head_dim) ** -0.5,
            "You multiply the widths. The parts stand side by side in one key, so their widths add up.",
        ),
        Mistake(
            "one over it",
            lambda config: (config.qk_nope_head_dim + config.qk_rope_head_dim) ** 0.5,
            "Scores are divided by this number. The factor in front is one over it.",
        ),
        Mistake(
            "no root",
            lambda config: 1 / (config.qk_nope_head_dim + config.qk_rope_head_dim),
            "The width is right, its square root is missing.",
        ),
    ),
    hints=(
        "Plain attention divides by the square root of the width of a key. Which vectors meet in a score of MLA?",
        "Eq. 4: a key is a content part and a positional part side by side. How wide is that?",
    ),
    after="At the size of V3 it is 0.07217, and with YaRN the package multiplies it by one more factor (lesson 15).",
)
