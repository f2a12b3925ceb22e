"""Exercise 4.2: the grouped-query attention whose cache is as large."""

from __future__ import annotations

from dsv3_mini.course.checking import Exercise, Mistake

EQUAL_GROUPS = Exercise(
    id="4.2",
    idea="kv_cache",
    title="The grouped-query attention with the same cache",
    minutes=5,
    answer="equal_groups",
    reference="equal_groups = (d_c + d_r) / (2 * d_h)",
    value=2.25,
    mistakes=(
        Mistake("keys only", 4.5, "You count one vector a group. A group caches a key and a value."),
        Mistake(
            "latent alone",
            2.0,
            "That fits the latent alone (or is rounded). MLA caches the positional key as well, and the answer need "
            "not be a whole number.",
        ),
        Mistake("latent alone, keys only", 4.0, "A group caches a key and a value, and MLA more than the latent."),
        Mistake("against MHA", 512 / 9, "That is how many times smaller than plain attention it is, not the groups."),
        Mistake("against MHA, one decimal", 56.9, "That is how many times smaller than plain attention it is."),
        Mistake("against MHA, two decimals", 56.89, "That is how many times smaller than plain attention it is."),
        Mistake("against MHA, rounded", 57.0, "That is how many times smaller than plain attention it is."),
        Mistake(
            "whole keys",
            576 / (192 + 128),
            "You give a group the key of MLA, content and position. A plain group has a key and a value of width d_h.",
        ),
        Mistake("upside down", 256 / 576, "Turn it round: how many times does one group go into the cache of MLA?"),
        Mistake(
            "two vectors too many", 1.125, "You divide by two once too often: d_c and d_r are cached once, not twice."
        ),
        Mistake("numbers", 576.0, "These are the numbers that MLA caches. How many groups cache as many?"),
        Mistake(
            "numbers of a group",
            256.0,
            "These are the numbers that one group caches. How many groups cache as many as MLA does?",
        ),
        Mistake("one key for each head", 128.0, "128 groups are plain attention: each head with a key of its own."),
    ),
    hints=(
        "How many numbers does one group cache per token and layer, and how many does MLA?",
        "A group has one key and one value, each `d_h` wide; MLA has `d_c` and `d_r`. Divide.",
    ),
    after="A quarter of a group more than two, and yet all heads have keys and values of their own.",
)
