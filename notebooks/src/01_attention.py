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
# # 01 Attention
#
# *About 40 minutes. You need matrix products and a little PyTorch. This lesson builds the part of a transformer that
# lets tokens look at each other. Lessons 02 to 05 then change it, step by step, into what DeepSeek-V3 uses.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import math

    import matplotlib.pyplot as plt
    import torch
    import torch.nn.functional as F
    from torch import nn

    from dsv3_mini import ModelConfig
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.model.attention import MultiHeadAttention
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
# > the cat sat on the mat because **it** was tired
#
# You know at once what *it* means. A layer that looks at each word by itself can never know: it would have to fetch
# something from *another* word, and which word that is depends on the sentence.
#
# A layer has a fixed set of weights. A sentence has ten words, or ten thousand.
#
# **How can a fixed set of weights let every token fetch what it needs from any number of earlier tokens?**
#
# Before you read on: how would you do it? Averaging all the earlier words would work for any number of them. What would
# be wrong with that, and what is the smallest change that would mend it?

# %% [markdown]
# ## What you will be able to do
#
# * Write causal multi-head attention from dot products, and show that it equals PyTorch's.
# * Say what the scale, the mask and the heads are for, each with a number that goes wrong without it.
# * Test any attention for a leak from the future, in four lines.
# * Put it all into a PyTorch module that you wrote yourself.
# * Recognise two bugs that run without an error.

# %% [markdown]
# ## Predict
#
# Guess first: choose or type, then read on. A wrong guess that you remember teaches more than a right answer that you
# read.

# %% tags=["predict"]
guess_1 = predict(
    "1.p1",
    "Take one query and 16 keys, each made of 256 random numbers (normal, standard deviation 1). A softmax of the "
    "16 dot products gives 16 weights that sum to one. How large is the largest of them, on average?",
    choices={"a": "about 1/16", "b": "about 1/3", "c": "nearly 1"},
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "1.p2",
    "Causal attention reads 8 tokens and gives 8 outputs. You replace the third token by another. How many of the 8 "
    "outputs change?",
    unit="outputs",
)
guess_2

# %% [markdown]
# ## Build it
#
# ### One token asks
#
# Let us describe each word by four numbers that we choose by hand: is it *alive*, is it a *thing*, is it an *action*,
# does it *point back* to another word? (A trained model finds its own numbers, hundreds of them, without such names.)
#
# Shapes in this lesson: `B` sentences in a batch, `T` tokens, `D` width of a token, `H` heads, `K` width of a head.

# %%
words = "the cat sat on the mat because it was tired".split()
# columns: alive, thing, action, points back
table = {
    "cat": [1.0, 0.0, 0.0, 0.0],
    "mat": [0.0, 1.0, 0.0, 0.0],
    "sat": [0.0, 0.0, 1.0, 0.0],
    "it": [0.0, 0.0, 0.0, 1.0],
}
x = torch.tensor([table.get(word, [0.0] * 4) for word in words])  # [T, D]
print(f"x has the shape {list(x.shape)}: {len(words)} tokens of width {x.shape[1]}")

# %% [markdown]
# The word *it* looks for something: a living being, or else a thing. We write this wish in the same four numbers and
# call it a **query**. How well does each word fit the wish? The dot product says so: it multiplies what is wished for
# with what is there, and adds up.

# %%
query = torch.tensor([4.0, 2.0, 0.0, 0.0])  # [D]: alive, or else a thing
scores = x @ query  # [T, D] @ [D] -> [T]
weights = scores.softmax(-1)  # [T], positive, sums to one
for word, score, weight in zip(words, scores, weights, strict=True):
    print(f"{word:>8}  score {score:3.0f}   weight {weight:.3f}  {'#' * round(40 * weight.item())}")

# %% [markdown]
# The **softmax** turns scores into shares: all positive, summing to one, and a score that is higher by one gets `e` =
# 2.718... times the share. So what *it* receives is an average again, only not an even one: mostly *cat*, some *mat*, a
# little of everything.
#
# What is averaged need not be what is compared. Each token offers two vectors: a **key**, to be found by, and a
# **value**, to be handed over. Here both are the four numbers themselves.

# %%
received = weights @ x  # [T] @ [T, D] -> [D], the weighted mean of the values
print(
    "it receives:  alive {:.2f}   thing {:.2f}   action {:.2f}   points back {:.2f}".format(
        *received.tolist()
    )
)

# %% [markdown]
# That is the whole idea. The weights came from the sentence, not from the layer; the number of tokens never mattered.
#
# ### All tokens ask at once
#
# Where does the query come from? From the token itself, by a matrix. `w_q` turns "I point back" into "I look for
# something alive, or else a thing". The matrix is the fixed set of weights; everything else is the sentence.

# %%
w_q = torch.zeros(4, 4)  # [D, K]
w_q[3, 0], w_q[3, 1] = 4.0, 2.0  # points back -> wishes for alive (4), thing (2)
q, k, v = x @ w_q, x, x  # [T, K] each
scores = q @ k.T  # [T, K] @ [K, T] -> [T, T]: row = who asks, column = who is asked
weights = scores.softmax(-1)  # each row sums to one
print("scores", list(scores.shape))
print("row of 'it': ", " ".join(f"{w:.2f}" for w in weights[7]))
print("row of 'the':", " ".join(f"{w:.2f}" for w in weights[0]))

# %% [markdown]
# *the* asks for nothing: its query is zero, all its scores are zero, and it gets the even average. There is no way to
# fetch nothing at all: the shares of a row always sum to one.
#
# ### Why divide?
#
# Dot products grow with the width. Try it with random vectors: what happens to the scores, and what does the softmax
# make of them? The last column, $p(1-p)$ of the largest share, is how much that share still moves when its score moves:
# the slope that training has to work with.

# %%
torch.manual_seed(0)
print("width   std of scores   largest of 16 shares   its slope p(1-p)")
for width in (4, 16, 64, 256, 1024):
    some_q, some_k = torch.randn(4000, 1, width), torch.randn(4000, 16, width)
    raw = (some_q * some_k).sum(-1)  # [4000, 16] dot products
    for name, s in (("plain", raw), ("scaled", raw / math.sqrt(width))):
        top = s.softmax(-1).amax(-1)
        slope = (top * (1 - top)).mean()
        print(f"{width:5}   {s.std():13.2f}   {top.mean():20.2f}   {slope:16.3f}   {name}")

# %% [markdown]
# A dot product of `K` random pairs is a sum of `K` terms of variance 1: its standard deviation is $\sqrt K$. Left
# alone, a wide head starts its life certain of one arbitrary token, on the flat end of the softmax where the slope
# vanishes. Dividing by $\sqrt K$ makes the width drop out: look how the scaled rows stay the same from 4 to 1024.
#
# ### The mask
#
# A language model learns to predict token `t + 1` at token `t`, for all `t` of a text at once. So token `t` must not
# see what comes after it. We set those scores to $-\infty$ *before* the softmax; then $e^{-\infty} = 0$ and they get no
# share.
#
# Why before? Could we not compute the softmax first, and set the shares of the future to zero afterwards? Try both.

# %%
T = 5
torch.manual_seed(0)
scores = torch.randn(T, T)
position = torch.arange(T)
may_see = position[None, :] <= position[:, None]  # [T, T]: column (asked) <= row (who asks)
print(may_see.int())
before = scores.masked_fill(~may_see, float("-inf")).softmax(-1)
after = scores.softmax(-1) * may_see
print("rows sum to, masked before the softmax:", " ".join(f"{s:.2f}" for s in before.sum(-1)))
print("rows sum to, masked after it:          ", " ".join(f"{s:.2f}" for s in after.sum(-1)))

# %% [markdown]
# Masked afterwards, the first token is left with a small share of itself. Worse, how small depends on the scores of the
# future tokens: the sum in the softmax has already seen them. That is a leak, and no shape shows it.
#
# ### Heads
#
# One softmax gives one average. But *it* may want two things at the same time: *cat*, and the word just before it. So
# we cut the width into `H` pieces of width `K` and let each piece, a **head**, do its own attention.
#
# In memory a token is one row of `H * K` numbers: the heads stand side by side *inside* each token. We want the heads
# outside and the tokens inside, `[H, T, K]`. That takes two steps, and the second one is the one that people forget:
# `view` cuts the row into pieces, `transpose` changes the order of the axes.

# %%
T, H, K = 3, 2, 2
rows = torch.tensor(
    [[10 * t + c for c in range(H * K)] for t in range(T)]
)  # [T, H * K]; tens digit = token
print("tokens, tens digit = token, ones digit = channel:\n", rows, "\n")
by_head = rows.view(T, H, K).transpose(0, 1)  # [T, H, K] -> [H, T, K]
for h in range(H):
    print(f"head {h} sees\n", by_head[h])

# %% [markdown]
# Each head has all three tokens (0, 1 and 2 in the tens), and its own channels of each. Keep this picture for the
# museum.
#
# ### All together
#
# Four matrices: `w_q`, `w_k`, `w_v` make queries, keys and values; `w_o` mixes what the heads have fetched.


# %%
def attention_weights(q, k):
    """q, k [..., T, K] -> the shares [..., T, T] of causal attention."""
    T, K = q.shape[-2:]
    position = torch.arange(T)
    may_see = position[None, :] <= position[:, None]  # [T, T]
    scores = q @ k.transpose(-2, -1) / math.sqrt(K)  # [..., T, T]
    return scores.masked_fill(~may_see, float("-inf")).softmax(-1)


def attention_by_hand(x, w_q, w_k, w_v, w_o, heads):
    """x [B, T, D]; w_q, w_k, w_v [D, H * K]; w_o [H * K, D] -> [B, T, D]."""
    B, T, _ = x.shape
    q, k, v = (
        (x @ w)
        .view(B, T, heads, -1)
        .transpose(1, 2)  # [B, T, H * K] -> [B, T, H, K] -> [B, H, T, K]
        for w in (w_q, w_k, w_v)
    )
    out = attention_weights(q, k) @ v  # [B, H, T, T] @ [B, H, T, K] -> [B, H, T, K]
    out = out.transpose(1, 2).reshape(B, T, -1)  # heads back into the rows: [B, T, H * K]
    return out @ w_o  # [B, T, D]


torch.manual_seed(1)
B, T, D, H, K = 2, 8, 32, 4, 16
x = torch.randn(B, T, D)
w_q, w_k, w_v = (torch.randn(D, H * K) / math.sqrt(D) for _ in range(3))
w_o = torch.randn(H * K, D) / math.sqrt(H * K)
y = attention_by_hand(x, w_q, w_k, w_v, w_o, H)
print(
    f"x {list(x.shape)} -> y {list(y.shape)};  heads together are {H * K} wide, a token is {D} wide"
)

# %% [markdown]
# Note that `H * K` is 64 here and `D` is 32. They need not be equal: `w_o` brings the heads back to the width of a
# token. In DeepSeek-V3 they are not equal either; you will see the numbers below.

# %% [markdown]
# ## Reveal
#
# **Guess 1** was about the row "256, plain" of the table above. **Guess 2** we measure: replace the third token, run
# again, and count the outputs that moved. Remember this small function. It finds every leak from the future.


# %%
def outputs_that_change(attention, x, token):
    """Replace one token of x [1, T, D]; which of the T outputs change?"""
    other = x.clone()
    other[:, token] = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0))
    moved = (attention(x) - attention(other)).abs().amax(dim=(0, 2)) > 1e-6  # [T]
    return moved.nonzero().flatten().tolist()


torch.manual_seed(0)
some_q, some_k = torch.randn(4000, 1, 256), torch.randn(4000, 16, 256)
largest = (some_q * some_k).sum(-1).softmax(-1).amax(-1).mean()
guess_1.reveal("c", f"the largest share is {largest:.2f} on average.")

# %%
changed = outputs_that_change(lambda x: attention_by_hand(x, w_q, w_k, w_v, w_o, H), x[:1], token=2)
guess_2.reveal(len(changed), f"those at the positions {changed}.", within=1)

# %% [markdown]
# The third token is at position 2 when we count from 0. It reaches itself and everything after it, and nothing before
# it.

# %% [markdown]
# ## Check against the package
#
# PyTorch has all of this in one call, `F.scaled_dot_product_attention`. The package's `MultiHeadAttention` uses it; the
# matrices there are `nn.Linear` layers, which store a weight as `[out, in]`, so we put ours in transposed.

# %%
q, k, v = ((x @ w).view(B, T, H, K).transpose(1, 2) for w in (w_q, w_k, w_v))  # [B, H, T, K]
ours = attention_weights(q, k) @ v
theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True)
difference = (ours - theirs).abs().max().item()
print(f"max |diff| against F.scaled_dot_product_attention: {difference:.1e} (tolerance 1e-05)")

package = MultiHeadAttention(hidden_size=D, num_heads=H, head_dim=K)
layers = (package.q_proj, package.k_proj, package.v_proj, package.o_proj)
with torch.no_grad():
    for layer, w in zip(layers, (w_q, w_k, w_v, w_o), strict=True):
        layer.weight.copy_(w.T)
    difference = (y - package(x)).abs().max().item()
print(f"max |diff| against dsv3_mini.model.attention: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# Not exactly zero: the same sums in another order round differently. Everything in this course is equal in that sense.

# %% [markdown]
# ## Play
#
# Two heads, made by hand. The first is the one from above: words that point back look for something alive, or else for
# a thing. The second looks for *the word before me*; for that, each token also carries its position, as one number that
# is 1 in a place of its own (lesson 03 finds a better way).
#
# Change the sentence, run the cell, and read the rows: who looks where? Words that are not in the table are neither
# alive nor things. Add some.

# %%
sentence = "the cat sat on the mat because it was tired"  # yours: up to 16 words
# columns: alive, thing, action, points back
table |= {
    "dog": [1.0, 0.0, 0.0, 0.0],
    "she": [1.0, 0.0, 0.0, 1.0],
    "box": [0.0, 1.0, 0.0, 0.0],
    "ran": [0.0, 0.0, 1.0, 0.0],
}

words = sentence.lower().split()[:16]
T = len(words)
about = torch.tensor([table.get(word, [0.0] * 4) for word in words])  # [T, 4]
place = torch.eye(16)[:T]  # [T, 16]: row t is 1 in column t
wish = torch.zeros(4, 4)
wish[3, 0], wish[3, 1] = 4.0, 2.0
before_me = torch.eye(16).roll(-1, dims=1)  # turns "I am at t" into "I look for t - 1"
before_me[0] = 0.0  # the first word has nobody before it
maps = {
    "head 0: who do I point to?": attention_weights(2.0 * about @ wish, about),
    "head 1: who is before me?": attention_weights(30.0 * place @ before_me, place),
}

figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.9), sharey=True)
for ax, (title, shares) in zip(axes, maps.items(), strict=True):
    hidden = torch.ones(T, T).triu(1).bool()
    picture = ax.imshow(shares.masked_fill(hidden, float("nan")), vmin=0, vmax=1)
    ax.set_title(title, fontsize=11)
    ax.set_xticks(range(T), words, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
    ax.set_yticks(range(T), words, fontsize=9)
    ax.set_xlabel("is looked at")
    ax.spines[:].set_visible(False)
axes[0].set_ylabel("looks")
figure.colorbar(picture, ax=axes, label="share", shrink=0.85)
plt.show()
row = maps["head 0: who do I point to?"]
for t, word in enumerate(words):
    if about[t, 3]:
        print(f"'{word}' looks most at '{words[int(row[t].argmax())]}' (share {row[t].max():.2f})")

# %% [markdown]
# *In words: on the left the row of "it" is bright at "cat" and weaker at "mat", all other rows spread evenly over what
# came before. On the right each row is bright one step left of the diagonal. The upper right triangle is empty: it is
# the future.*
#
# Move "the cat" behind "it" (*because it was tired the cat sat*). Where does *it* look now, and why?

# %% [markdown]
# ## Exercises
#
# Write your code in the cell that opens with `# Exercise`, run it, then run the cell under it: it says *not attempted*,
# or what is wrong, or *right*. The answer runs on fresh random inputs each time. Stuck? Ask for a hint, as often as you
# like; a solution is shown only when you ask for it.


# %% tags=["exercise"]
# Exercise 1.1 (5 minutes): a causal mask for several documents packed into one row.
# Each token looks back, but only at its own document.
def document_mask(document):
    """document [T], its number for each token -> bool [T, T], True where looking is allowed."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("1.1").hint(), and in the end exercise("1.1").solution()
exercise("1.1").check(document_mask)


# %% tags=["exercise"]
# Exercise 1.2 (5 minutes): put the heads back into the rows, the inverse of `view` + `transpose`.
def merge_heads(x):
    """x [B, H, T, K] -> [B, T, H * K]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("1.2").hint(), and in the end exercise("1.2").solution()
exercise("1.2").check(merge_heads)


# %% tags=["exercise"]
# Exercise 1.3 (10 minutes): what does the last token receive?
# Compute its output alone, from its own query and everybody's keys and values.
def attend_last(q_last, k, v):
    """q_last [H, K]: query of the last token; k, v [H, T, K] of all tokens -> its output [H, K]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("1.3").hint(), and in the end exercise("1.3").solution()
exercise("1.3").check(attend_last)


# %% tags=["exercise"]
# Exercise 1.4 (10 minutes): find out who sees whom, in a layer that you cannot look into.
# `attention` is any function from [1, T, D] to [1, T, D]; run it as often as you need.
def reach(attention, x):
    """x [1, T, D] -> bool [T, T]: row i, column j is True if output i moves when token j is replaced."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("1.4").hint(), and in the end exercise("1.4").solution()
exercise("1.4").check(reach)


# %% tags=["exercise"]
# Exercise 1.5 (15 minutes): all of it in one module: heads, and rows that hold several documents.
# The layers are there; write `forward`.
class PackedAttention(nn.Module):
    def __init__(self, width, heads, head_width):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, heads * head_width, bias=False)
        self.k_proj = nn.Linear(width, heads * head_width, bias=False)
        self.v_proj = nn.Linear(width, heads * head_width, bias=False)
        self.o_proj = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x, document):
        """x [B, T, D]; document [B, T], a number for each token -> [B, T, D]."""
        ...  # your code here


# %% tags=["check"]
# Stuck? exercise("1.5").hint(), and in the end exercise("1.5").solution()
exercise("1.5").check(PackedAttention)

# %% [markdown]
# Look at what exercise 1.3 did *not* need: the queries of the earlier tokens. Lesson 02 lives on that.

# %% [markdown]
# ## Bug museum
#
# Real mistakes that run without an error. For each: read the code, say what you will see, run it, then find the cause.
#
# ### Exhibit 1.A: reshape without transpose

# %%
exhibit("1.A").show()

# %% tags=["predict"]
exhibit("1.A").predict()

# %%
exhibit("1.A").run()

# %% [markdown]
# *In words: on the left a triangle, each output moves with its own token and the earlier ones. On the right the first
# half of the tokens moves every output, and the second half moves every other one.* Why? Look at the tens digits.

# %%
exhibit("1.A").diagnose()

# %% [markdown]
# ### Exhibit 1.B: a mask that is off by one
#
# Before you choose: what is the lowest loss that anybody can reach on random letters that are repeated once?

# %%
exhibit("1.B").show()

# %% tags=["predict"]
exhibit("1.B").predict()

# %%
exhibit("1.B").run()

# %% [markdown]
# *In words: the loss with the right mask comes close to the line and stays above it; the loss with the wrong mask falls
# through it to zero.* Which of the two models would you like to write with?

# %%
exhibit("1.B").diagnose()

# %% [markdown]
# ## What the report says
#
# * **§2.1, Figure 2.** DeepSeek-V3 is still a Transformer; attention is one half of each block.
# * **§2.1.1, Eq. 10** is your `attention_weights(q, k) @ v`. The sum over $j = 1 \dots t$ is the causal mask, the index
#   $i$ counts heads, and the scores are divided by $\sqrt{d_h + d_h^R}$, the width of a query there.
# * **§2.1.1, Eq. 11** is `w_o`: the heads side by side, times $W^O$.
# * **§4.2.** 61 layers, 128 heads of width 128, tokens 7168 wide. The heads together are wider than a token, as here.
# * **§4.1.** Documents are packed into one row for pre-training *without* the mask of exercise 1.1: they can see each
#   other.
#
# The same numbers from the package's own config:

# %%
v3 = ModelConfig.preset("v3-671b")
together = v3.num_attention_heads * v3.v_head_dim
print(f"{v3.num_hidden_layers} layers, {v3.num_attention_heads} heads of width {v3.v_head_dim}")
print(f"heads together {together}, a token {v3.hidden_size}")

# %% [markdown]
# ## Recap
#
# * A dot product says how well a key fits a query; the softmax makes shares of the scores; the shares average the
#   values.
# * Dividing by $\sqrt K$ keeps the softmax away from its flat end, whatever the width.
# * The mask goes in before the softmax. Masked afterwards, the future still leaks through the sum.
# * Heads are `view` *and* `transpose`. `view` alone runs, and is wrong.
# * To test: replace a token, and see which outputs move.
#
# In the idea graph you are inside *Pre-norm Transformer block*, on the link to *Multi-head Latent Attention*. **Next:**
# [02 The KV cache](02_kv_cache.ipynb). Exercise 1.3 needed no old queries. What does a model that writes a thousand
# tokens have to keep, and how much memory is that?
