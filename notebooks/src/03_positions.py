# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 Positions
#
# *About an hour with the exercises. You need lessons 01 and 02, sine and cosine. This lesson gives attention a sense
# of order by turning queries and keys (RoPE), in both layouts that are in use, and shows why the score then depends on
# how far apart two tokens are, and not on where.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import math

    import matplotlib.pyplot as plt
    import torch
    import torch.nn.functional as F

    from dsv3_mini import ModelConfig
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.model.attention import MultiHeadAttention
    from dsv3_mini.model.rope import (
        RotaryEmbedding,
        apply_rope,
        apply_rope_half_split,
        rope_frequencies,
    )
    from dsv3_mini.viz import style
except ModuleNotFoundError as missing:
    raise ImportError(
        f"this kernel has no module {missing.name!r}: it is not the kernel of the course. "
        "Start it with `make lab`, and choose Kernel > Change Kernel > Python 3 (ipykernel)."
    ) from None
style.use()
print("ready")

# %% [markdown]
# ## The question
#
# > the dog bites the man<br>the man bites the dog
#
# The same words, another story. Now go through attention as you built it in lesson 01: a score compares a query with a
# key, and both come from the token alone. Where in there does the order come in?
#
# **How does attention know which token came first, and how far away it is?**
#
# Before you read on: the simplest idea is to give each position a vector of its own, and to add it to the token. The
# little reciter in lesson 02 did that. What does it do at a position that it never saw in training?

# %% [markdown]
# ## What you will be able to do
#
# * Show by a permutation test that plain attention is blind to order.
# * Write RoPE in the interleaved layout (as DeepSeek-V3) and in the half-split layout, and convert between them.
# * Show in numbers that the score depends on the distance of two tokens and on nothing else of their positions.
# * Say which pairs see a full turn within a context, the question from which long-context methods start.
# * Write one step of decoding with a cache of turned keys.
# * Recognise two bugs that run without an error.

# %% [markdown]
# ## Predict
#
# Two guesses before you build anything. Run a cell, choose, and go on; a wrong guess costs nothing.

# %% tags=["predict"]
guess_1 = predict(
    "3.p1",
    "Attention without a mask. You shuffle the tokens of a text and run it again. What happens to the outputs?",
    choices={
        "a": "all are different",
        "b": "they are the same outputs, shuffled in the same way",
        "c": "nothing changes at all",
    },
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "3.p2",
    "With RoPE, a query at position 7 and a key at position 3 have some score. Move both by 1000, to 1007 and 1003. "
    "What happens to the score?",
    choices={"a": "it is smaller", "b": "it is the same", "c": "impossible to tell"},
)
guess_2

# %% [markdown]
# ## Build it
#
# ### Attention is blind
#
# Shuffle the tokens, run attention, and put the outputs back in the old order. If attention saw the order, something
# would be different now.
#
# Shapes: `B` rows, `T` tokens, `D` width of a token, `H` heads, `R` width of a head, all of it turned by RoPE.

# %%
torch.manual_seed(0)
T, D = 6, 16
x = torch.randn(1, T, D)
layer = MultiHeadAttention(hidden_size=D, num_heads=2, head_dim=8)


@torch.no_grad()
def attention_without_mask(x):
    """x [B, T, D] -> [B, T, D], with the weights of `layer`."""
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    q, k, v = (proj(x).unflatten(-1, (2, 8)).transpose(1, 2) for proj in projections)
    return layer.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
back = shuffled.argsort()
same = (attention_without_mask(x[:, shuffled])[:, back] - attention_without_mask(x)).abs().max()
print(f"no mask:     outputs, put back in order, differ by {same:.1e}")

earlier_shuffled = torch.tensor([3, 0, 4, 1, 2, 5])  # the last token stays the last
with torch.no_grad():
    same = (layer(x[:, earlier_shuffled])[:, -1] - layer(x)[:, -1]).abs().max()
print(f"causal mask: the last output differs by {same:.1e} when the earlier tokens are shuffled")

# %% [markdown]
# Only rounding. Without a mask attention treats a text as a *bag* of tokens. The causal mask tells earlier from later,
# but a token cannot tell in which order the earlier ones stood.
#
# A table with a learned vector for every position mends that, up to the end of the table. And it has to learn "two
# back" for each pair of positions separately. We would rather have a score that depends on the *distance* by
# construction.
#
# ### A pair of numbers as a clock hand
#
# Take a query of two numbers: a point in the plane. Let a token at position `p` turn its query by the angle `p` times
# some speed, and its key likewise. What happens to their dot product?


# %%
def turn(point, angle):
    """Turn a point (x, y) around the origin."""
    x, y = point
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([x * c - y * s, x * s + y * c])


speed = 0.3  # angle per position, in radians
q, k = torch.tensor([1.0, 0.5]), torch.tensor([0.8, -0.4])
for p_query, p_key in ((7, 3), (107, 103), (1007, 1003), (7, 4)):
    score = turn(q, p_query * speed) @ turn(k, p_key * speed)
    print(f"query at {p_query:4}, key at {p_key:4}, distance {p_query - p_key}: score {score:.4f}")

# %% [markdown]
# The first three agree. A dot product depends on the two lengths and on the angle *between* the points. Turning never
# changes a length, and when query and key are turned by `p * speed` and `s * speed`, the angle between them changes by
# `(p - s) * speed`. The positions themselves drop out.
#
# ### Many hands, many speeds
#
# One hand is not enough: after a full turn it stands where it stood. A slow hand tells far positions apart but hardly
# moves between neighbours. A clock solves that with several hands, and so does RoPE. With `R` numbers there are `R / 2`
# pairs, and pair `j` has the speed
#
# $$\omega_j = \theta^{-2j/R}, \qquad j = 0, \dots, R/2 - 1$$
#
# where $\theta$ = 10000 in the released code (the report does not print it).


# %%
def speeds(R, theta=10_000.0):
    """Angle per position of each pair, [R / 2]."""
    j = torch.arange(R // 2)
    return theta ** (-2.0 * j / R)


for j, omega in enumerate(speeds(8)):
    full_turn = 2 * math.pi / omega
    print(f"pair {j}: {omega:.4f} radians per position, a full turn in {full_turn:,.0f} positions")

# %% [markdown]
# ### Which two numbers make a pair?
#
# A vector of `R` numbers is read as `R / 2` points. The released code of DeepSeek-V3 takes *neighbours*: (x0, x1), (x2,
# x3), ... This layout is called **interleaved**.


# %%
def rope(x, positions, theta=10_000.0):
    """Turn neighbours: x [..., T, R], positions [T] -> [..., T, R]."""
    angles = positions[:, None] * speeds(x.shape[-1], theta)  # [T, R / 2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., 0::2], x[..., 1::2]  # [..., T, R / 2] each
    turned = torch.empty_like(x)
    turned[..., 0::2] = first * cos - second * sin
    turned[..., 1::2] = first * sin + second * cos
    return turned


torch.manual_seed(0)
R, T = 8, 5
x = torch.randn(T, R)
y = rope(x, torch.arange(T))
print("position 0 stays as it is:", torch.equal(y[0], x[0]))
print("lengths before", " ".join(f"{length:.3f}" for length in x.norm(dim=-1)))
print("lengths after ", " ".join(f"{length:.3f}" for length in y.norm(dim=-1)))

# %% [markdown]
# Other models (Llama in the Hugging Face format is one) pair the first half with the second half: (x0, x4), (x1, x5),
# (x2, x6), (x3, x7) for `R = 8`. This layout is called **half-split**.


# %%
def rope_half_split(x, positions, theta=10_000.0):
    """Turn (x_j, x_{j + R/2}): x [..., T, R], positions [T] -> [..., T, R]."""
    angles = positions[:, None] * speeds(x.shape[-1], theta)  # [T, R / 2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)  # [..., T, R / 2] each
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


positions = torch.arange(T)
apart = (rope(x, positions) - rope_half_split(x, positions)).abs().max()
print(f"same x, two layouts: they differ by {apart:.2f}")
order = torch.cat(
    [torch.arange(0, R, 2), torch.arange(1, R, 2)]
)  # first all even channels, then all odd ones
print("order of the channels:", order.tolist())
difference = (
    (rope_half_split(x[:, order], positions) - rope(x, positions)[:, order]).abs().max().item()
)
print(
    f"max |diff| against the other layout, channels reordered: {difference:.1e} (tolerance 1e-06)"
)

# %% [markdown]
# So the layouts are the same rotation with the channels in another order. A dot product does not care about the order
# of its terms, as long as query and key have the *same* order. Both layouts are equally good, but weights that were
# trained in one of them give nonsense in the other. That is the first exhibit below.
#
# ### Distance, and nothing else
#
# Now with a whole vector. One query, one key, several distances; and each distance at several places in the text. If
# the positions drop out, each column has one number in it.

# %%
torch.manual_seed(1)
q, k = torch.randn(1, 64), torch.randn(1, 64)
distances = (0, 1, 4, 16, 64)


def score(distance, place):
    """Key at `place`, query `distance` after it."""
    return (rope(q, torch.tensor([place + distance])) @ rope(k, torch.tensor([place])).T).item()


print("key at    " + "".join(f"distance {d:<5}" for d in distances))
for place in (0, 10, 1000, 100_000):
    print(f"{place:>7,}   " + "".join(f"{score(d, place):<14.3f}" for d in distances))
for dtype, angle in ((torch.float32, 100_000), (torch.bfloat16, 300)):
    here = torch.tensor(angle, dtype=dtype)
    step = torch.nextafter(here, torch.tensor(torch.inf, dtype=dtype)) - here
    print(f"the next number after {angle:,} in {dtype} is {step:g} away")

# %% [markdown]
# The last row is off in the third decimal, and that is worth a thought. Around 100,000 the numbers of fp32 lie almost a
# hundredth apart, so an angle there is off by a few thousandths. Angles are computed in fp32 for that reason, whatever
# the precision of the model. In bf16 the fastest hand would be useless after a few hundred positions: it could only
# jump by two radians.

# %% [markdown]
# ## Reveal

# %%
torch.manual_seed(0)
text = torch.randn(1, 6, D)
shuffled_outputs = attention_without_mask(text[:, shuffled])
moved = (shuffled_outputs[:, back] - attention_without_mask(text)).abs().max()
guess_1.reveal("b", f"put back in order, they differ by {moved:.1e}")

# %%
guess_2.reveal(
    "b", f"the score is {score(4, 3):.4f} at 7 and 3, and {score(4, 1003):.4f} at 1007 and 1003"
)

# %% [markdown]
# ## Check against the package
#
# The package computes cos and sin once for all layers (`RotaryEmbedding`), then turns queries and keys (`apply_rope`).
# Its vectors come as `[B, T, H, R]`, ours as `[..., T, R]`, hence the transposes. The config is that of the real V3,
# without the context extension of lesson 15.

# %%
v3 = ModelConfig.preset("v3-671b").replace(rope_scaling=None)
R = v3.qk_rope_head_dim
difference = (speeds(R, v3.rope_theta) - rope_frequencies(v3)).abs().max().item()
print(f"R = {R}, theta = {v3.rope_theta:.0f}")
print(f"max |diff| against rope_frequencies: {difference:.1e} (tolerance 1e-06)")

torch.manual_seed(2)
positions = torch.arange(50)
x = torch.randn(2, 50, 3, R)  # [B, T, H, R]
cos, sin = RotaryEmbedding(v3)(positions)  # [T, R / 2] each
ours = rope(x.transpose(1, 2), positions).transpose(1, 2)
difference = (ours - apply_rope(x, cos, sin)).abs().max().item()
print(f"max |diff| against apply_rope: {difference:.1e} (tolerance 1e-05)")
ours = rope_half_split(x.transpose(1, 2), positions).transpose(1, 2)
difference = (ours - apply_rope_half_split(x, cos, sin)).abs().max().item()
print(f"max |diff| against apply_rope_half_split: {difference:.1e} (tolerance 1e-05)")

layer_64 = MultiHeadAttention(hidden_size=96, num_heads=2, head_dim=R)
text = torch.randn(1, 50, 96)
with torch.no_grad():
    projections = (layer_64.q_proj, layer_64.k_proj, layer_64.v_proj)
    q, k, v = (proj(text).unflatten(-1, (2, R)).transpose(1, 2) for proj in projections)
    q, k = rope(q, positions), rope(k, positions)  # values are not turned
    ours = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    ours = layer_64.o_proj(ours.transpose(1, 2).flatten(-2))
    difference = (ours - layer_64(text, cos, sin)).abs().max().item()
print(f"max |diff| against MultiHeadAttention with cos and sin: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# Values are not turned: a value says what is handed over, and that should not depend on where it stood.

# %% [markdown]
# ## Play
#
# Two pictures of the speeds. On the left: how many positions each pair needs for a full turn. On the right: the score
# of a query with a key that is the *same* vector (all ones), by distance, as a share of its length squared. Change
# `theta`, `width` and `context` in the first line: what does a larger theta do to the near, and to the far?

# %%
width, theta, context = 64, 10_000.0, 4096  # yours: change and run again

turns = 2 * math.pi / speeds(width, theta)  # [R / 2], positions per full turn
distance = torch.arange(0, 257)
fades = (distance[:, None] * speeds(width, theta)).cos().mean(-1)  # [257]
blue, vermillion = style.BLUE, style.VERMILLION
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6))
slow = turns > context
pair = torch.arange(width // 2)
left.plot(pair[~slow], turns[~slow], "o", color=blue, markersize=4)
left.plot(pair[slow], turns[slow], "s", color=vermillion, markersize=4, fillstyle="none")
left.axhline(context, color=style.GREY, linewidth=1, linestyle=":")
left.text(0, context * 1.3, f"context {context:,}", color=style.GREY, fontsize=10)
left.set(yscale="log", xlabel="pair j", title="Positions per full turn")
right.plot(distance, fades, color=blue)
right.axhline(0, color=style.GREY, linewidth=1)
right.set(xlabel="distance", title="Score of equal vectors", ylim=(-0.1, 1.05))
plt.show()
print(f"a full turn takes from {turns[0]:.1f} to {turns[-1]:,.0f} positions;", end=" ")
print(f"{int(slow.sum())} of {width // 2} pairs make less than one in {context:,} positions")

# %% [markdown]
# *In words: on the left the points rise along a straight line (the scale is logarithmic) from about 6 positions for a
# full turn to more than 47,000; the squares above the dotted line are pairs that never finish a turn within 4096
# positions. On the right the score starts at 1, drops quickly over the first ten positions and then fades slowly, in
# waves.*
#
# Pairs above the line have only ever seen a part of their circle in pre-training. Asked about a position far beyond,
# they come to angles that are new to them. **YaRN** (§4.3) slows these pairs down, and the ones just below the line a
# little, so that the longer context fits into the angles they know. Lesson 15 builds it.

# %% [markdown]
# ## Exercises
#
# Write your code in place of `...`, run the cell, then the one under it. `speeds` and `rope` from above may be used.


# %% tags=["exercise"]
# Exercise 3.1 (5 minutes): count the pairs that make less than one full turn in `context` positions.
def slow_pairs(R, theta, context):
    """-> how many of the R / 2 pairs, a whole number."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("3.1").hint(), and in the end exercise("3.1").solution()
exercise("3.1").check(slow_pairs)


# %% tags=["exercise"]
# Exercise 3.2 (10 minutes): the scores of one head whose weights come from DeepSeek-V3's checkpoint. Project, turn,
# compare, divide by the square root of R. No mask and no softmax yet. The text may have gaps in its positions.
def head_scores(x, w_q, w_k, positions):
    """x [T, D], w_q and w_k [R, D], positions [T] -> scores [T, T], a row for each query."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("3.2").hint(), and in the end exercise("3.2").solution()
exercise("3.2").check(head_scores)


# %% tags=["exercise"]
# Exercise 3.3 (10 minutes): a projection was trained with interleaved RoPE. Reorder its rows so that the
# same head works with half-split RoPE.
def to_half_split(weight):
    """weight [R, D] of one head (q = x @ weight.T) -> the same rows in another order, [R, D]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("3.3").hint(), and in the end exercise("3.3").solution()
exercise("3.3").check(to_half_split)


# %% tags=["exercise"]
# Exercise 3.4 (10 minutes): a cache holds keys that were turned for the positions 0, 1, ..., T - 1. A text of
# `by` tokens is put in front of them. Give the keys for their new positions, from the cached ones alone.
def move_cached(k_turned, by):
    """k_turned [T, R], turned for positions 0 to T - 1 -> turned for positions by to by + T - 1."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("3.4").hint(), and in the end exercise("3.4").solution()
exercise("3.4").check(move_cached)


# %% tags=["exercise"]
# Exercise 3.5 (15 minutes): write one token with a cache. The new token stands at `position` (a whole number), right
# after the cached ones; the cached keys were turned when they were stored.
def decode_step(q, k, v, k_cache, v_cache, position):
    """q, k [1, R] and v [1, V] of the new token, not turned; k_cache [S, R] turned, v_cache [S, V]
    -> output [1, V] and the key cache with the new key, [S + 1, R]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("3.5").hint(), and in the end exercise("3.5").solution()
exercise("3.5").check(decode_step)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 3.A: weights of one layout, code of the other
#
# Would you see in this code that it belongs to other weights?

# %%
exhibit("3.A").show()

# %% tags=["predict"]
exhibit("3.A").predict()

# %%
exhibit("3.A").run()

# %%
exhibit("3.A").diagnose()

# %% [markdown]
# ### Exhibit 3.B: turned on the way in, turned again at every step
#
# Read it beside your own `decode_step`.

# %%
exhibit("3.B").show()

# %% tags=["predict"]
exhibit("3.B").predict()

# %%
exhibit("3.B").run()

# %%
exhibit("3.B").diagnose()

# %% [markdown]
# ## What the report says
#
# * **§2.1.1, Eq. 3.** One key per token is turned, $\mathbf k^R_t$, and all heads share it. **Eq. 8:** the queries that
#   meet it, $\mathbf q^R_t$, are one per head. The rest of query and key, the content, is not turned at all. Lesson 04
#   shows why V3 keeps the two apart.
# * **§4.2.** $d_h^R$ = 64: 32 pairs.
# * **§4.3.** Pre-training sees 4K tokens; YaRN extends the context to 32K, then to 128K, acting on this shared key.
# * **Not in the report:** $\theta$ = 10000 and the interleaved layout. Both are in the released code.
# * The idea of turning is that of RoFormer (Su et al. 2024), which §2.1.1 builds on.

# %% [markdown]
# ## Recap
#
# * Attention compares contents; without help it sees a bag of tokens.
# * RoPE turns pairs of channels of queries and keys by position times speed. Of the positions, only the distance is
#   left in the score.
# * Many speeds: fast pairs tell neighbours apart, slow pairs tell far places apart.
# * Interleaved and half-split are the same rotation in another order of channels, but the weights know which.
# * Turn once. To test: move the whole text by many positions; nothing may change.
#
# In the idea graph you are at *Decoupled RoPE key and YaRN*. **Next:** [04 MLA](04_mla.ipynb). A turned key depends on
# its position. What does that do to a cache that would rather hold something compressed?
