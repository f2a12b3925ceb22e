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
# # 02 The KV cache
#
# *About 40 minutes. You need lesson 01: queries, keys, values, the causal mask. This lesson makes attention remember,
# so that writing the next token is cheap, and then asks what the memory costs. The answer is why DeepSeek-V3 has
# multi-head latent attention.*

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
# A language model writes one token at a time. It reads the prompt, writes a token, appends it, reads the longer text,
# writes the next one. After a thousand tokens it reads all thousand over again, although a moment ago it has read all
# of them but one.
#
# **What of the earlier work can it keep? What exactly must it keep? And what does keeping it cost?**
#
# Before you read on: in lesson 01 you replaced a token and looked which outputs moved. What does that say about
# everything that the layer computed for the earlier tokens?

# %% [markdown]
# ## What you will be able to do
#
# * Write prefill and decode, and show that they give what one pass over the whole text gives.
# * Count the work with and without a cache.
# * Shrink the cache by sharing keys and values: grouped-query and multi-query attention.
# * Compute the bytes per token of any of these at the size of DeepSeek-V3.
# * Let a model write with a cache, also several texts at once.
# * Recognise two bugs that cached decoding is prone to.

# %% [markdown]
# ## Predict
#
# Two guesses: one about the work that a memory saves, one about what the memory costs.

# %% tags=["predict"]
guess_1 = predict(
    "2.p1",
    "A prompt of 512 tokens, then the model writes 512 more. Without any memory it reads the whole text again for each "
    "of them. How many times more tokens pass through the layer than with a perfect memory?",
    choices={"a": "about 2 times", "b": "about 20 times", "c": "about 400 times"},
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "2.p2",
    "A model with the depth and the heads of DeepSeek-V3 (61 layers, 128 heads of width 128) and plain multi-head "
    "attention, 2 bytes per number. How many gigabytes does it have to remember for one text of 131,072 tokens?",
    unit="GB",
)
guess_2

# %% [markdown]
# ## Build it
#
# ### What changes when a token is added?
#
# One attention layer, by hand, as in lesson 01. It also hands out its keys and values, so that we can look at them.
#
# Shapes: `B` rows, `T` new tokens, `S` tokens in memory, `D` width of a token, `H` heads, `K` width of a head.

# %%
torch.manual_seed(0)
B, D, H, K = 1, 32, 4, 8
w_q, w_k, w_v = (torch.randn(D, H * K) / math.sqrt(D) for _ in range(3))
w_o = torch.randn(H * K, D) / math.sqrt(H * K)


def project(x):
    """x [B, T, D] -> q, k, v [B, H, T, K]."""
    return [(x @ w).unflatten(-1, (-1, K)).transpose(1, 2) for w in (w_q, w_k, w_v)]


def attend(q, k, v, may_see=None):
    """q [B, H, T, K], k and v [B, H, S, K], may_see [T, S] or None -> [B, T, D]."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(K)  # [B, H, T, S]
    if may_see is not None:
        scores = scores.masked_fill(~may_see, float("-inf"))
    out = scores.softmax(-1) @ v  # [B, H, T, K]
    return out.transpose(1, 2).flatten(-2) @ w_o  # heads into the rows, then [B, T, D]


def full_pass(x):
    """Causal attention over all tokens at once: x [B, T, D] -> y [B, T, D]."""
    T = x.shape[1]
    return attend(*project(x), may_see=torch.ones(T, T).tril().bool())


text = torch.randn(B, 7, D)
_, k_six, v_six = project(text[:, :6])
_, k_seven, v_seven = project(text)
y_six, y_seven = full_pass(text[:, :6]), full_pass(text)
print("change in the first six tokens when a seventh is added")
print(f"  keys    {(k_seven[:, :, :6] - k_six).abs().max():.1e}")
print(f"  values  {(v_seven[:, :, :6] - v_six).abs().max():.1e}")
print(f"  outputs {(y_seven[:, :6] - y_six).abs().max():.1e}")

# %% [markdown]
# Nothing changes, apart from rounding. Keys and values belong to one token each, and the mask keeps the old
# outputs from noticing the new token. So what does token 7 need in order to get its own output?
#
# * its query: fresh, from token 7 itself;
# * the keys and values of tokens 1 to 7. Six of the seven exist already.
#
# It does *not* need the old queries, and it does not need the old outputs. (In a deep model the next layer has keys and
# values of its own, which are kept there in the same way.)
#
# ### Prefill and decode
#
# Reading the prompt in one pass, and keeping its keys and values, is called **prefill**. Each later step with one new
# token is a **decode** step. What is kept is the **KV cache**.


# %%
def prefill(x):
    """The prompt x [B, T, D] -> its outputs and the cache, keys and values [B, H, T, K] each."""
    T = x.shape[1]
    q, k, v = project(x)
    return attend(q, k, v, may_see=torch.ones(T, T).tril().bool()), (k, v)


def decode(x_new, cache):
    """One new token x_new [B, 1, D], a cache of S tokens -> its output, a cache of S + 1."""
    q, k_new, v_new = project(x_new)  # [B, H, 1, K] each
    k = torch.cat([cache[0], k_new], dim=2)  # [B, H, S + 1, K]
    v = torch.cat([cache[1], v_new], dim=2)
    return attend(q, k, v), (k, v)  # no mask: the newest token may see everything


text = torch.randn(B, 12, D)
outputs, cache = prefill(text[:, :5])
pieces = [outputs]
for t in range(5, 12):
    y_new, cache = decode(text[:, t : t + 1], cache)
    pieces.append(y_new)
by_steps = torch.cat(pieces, dim=1)
difference = (by_steps - full_pass(text)).abs().max().item()
print(f"prefill 5 + 7 decode steps gives {list(by_steps.shape)}")
print(f"max |diff| against one full pass: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# The same outputs, from one token at a time.
#
# ### Room made in advance
#
# `torch.cat` hides a cost: it makes a new tensor and copies the whole old one into it, at every step. Real caches
# allocate the room once and write each token into its slot. A single rule then keeps everything straight: *the slot of
# a token is its position*, and only the first `length` slots hold anything.


# %%
class KVCache:
    """Room for max_len tokens, allocated once."""

    def __init__(self, heads, max_len):
        self.k = torch.zeros(B, heads, max_len, K)
        self.v = torch.zeros(B, heads, max_len, K)
        self.length = 0

    def append(self, k_new, v_new):
        """Store [B, heads, T, K] behind what is there; gives all of it, [B, heads, S, K]."""
        end = self.length + k_new.shape[2]
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k_new, v_new
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


cache = KVCache(H, max_len=12)
pieces = []
for t in range(12):  # this time without a prefill, from the very first token
    q, k_new, v_new = project(text[:, t : t + 1])
    pieces.append(attend(q, *cache.append(k_new, v_new)))
difference = (torch.cat(pieces, dim=1) - full_pass(text)).abs().max().item()
print(f"max |diff| against one full pass: {difference:.1e} (tolerance 1e-05)")
steps = 1024
copied = sum(t for t in range(steps))
print(f"tokens copied in {steps} steps: {copied:,} with torch.cat, none with room made in advance")

# %% [markdown]
# ### Count the work
#
# How much does the cache save? Count the tokens that pass through the layer, and the multiplications. Per token the
# four matrices take `4 * D * H * K`; per query and token in reach, score and average take `2 * H * K`.


# %%
def work(prompt, new, with_cache, D=D, width=H * K):
    """For `new` tokens: tokens through the layer, multiplications in matrices and in attention."""
    tokens = matrices = attention = 0
    for step in range(new):  # step 0 reads the prompt and gives the first new token
        length = prompt + step
        queries = length if step == 0 or not with_cache else 1
        tokens += queries
        matrices += queries * 4 * D * width
        pairs = queries * (2 * length - queries + 1) // 2  # a causal triangle, or one row of it
        attention += pairs * 2 * width
    return tokens, matrices, attention


print(f"{'':16}{'tokens':>9}{'in matrices':>15}{'in attention':>15}")
for name, with_cache in (("without cache", False), ("with cache", True)):
    tokens, matrices, attention = work(512, 512, with_cache)
    print(f"{name:16}{tokens:9,}{matrices:15,}{attention:15,}")

# %% [markdown]
# With the cache every token passes through the matrices once. The attention itself shrinks less, and cannot vanish:
# each new token still reads the keys and values of *everything* before it. So a decode step gets slower as the text
# gets longer, and each number of the cache is fetched from memory to take part in a single multiplication. That is the
# real price: not arithmetic, but memory, and the traffic to and from it.
#
# ### Fewer keys: grouped and multi-query attention
#
# The cache holds a key and a value for each head: `2 * H * K` numbers per token and layer. Queries are not cached. So
# let several query heads share one key/value head. With `G` key/value heads:
#
# * `G = H`: multi-head attention, **MHA**;
# * `1 < G < H`: grouped-query attention, **GQA**;
# * `G = 1`: multi-query attention, **MQA**.
#
# Query heads that stand next to each other share: with `H = 4` and `G = 2`, the first two read key/value head 0, the
# last two read head 1.


# %%
def project_grouped(x, w_k, w_v):
    """x [B, T, D]; w_k, w_v [D, G * K] -> q [B, H, T, K] and k, v [B, G, T, K]."""
    return [(x @ w).unflatten(-1, (-1, K)).transpose(1, 2) for w in (w_q, w_k, w_v)]


print(f"{'G':>2}   {'k in the cache':18} {'k as it is read':18} numbers per token")
for G in (4, 2, 1):
    q, k, v = project_grouped(text, w_k[:, : G * K], w_v[:, : G * K])
    k_read = k.repeat_interleave(H // G, dim=1)  # [B, H, T, K]: each key head, H / G times in a row
    v_read = v.repeat_interleave(H // G, dim=1)
    y = attend(q, k_read, v_read, may_see=torch.ones(12, 12).tril().bool())
    print(f"{G:2}   {list(k.shape)!s:18} {list(k_read.shape)!s:18} {2 * G * K:4}")

# %% [markdown]
# The copies of `repeat_interleave` exist only while attention runs, and a good kernel does not even make them; what
# stays in memory is `[B, G, S, K]`.
#
# ### Bytes per token, at full size
#
# Now the sizes of DeepSeek-V3. From the report, §4.2: 61 layers, 128 heads of width 128. A number takes 2 bytes in
# BF16.
#
# $$\text{bytes per token} = 2 \cdot G \cdot K \cdot \text{layers} \cdot \text{bytes per number}$$
#
# The 2 in front stands for a key and a value.
#
# The last row is what V3 really does. It caches one latent vector of 512 numbers and one positional key of 64 per token
# and layer, together, for all heads (§2.1.1, Eq. 1 and 3). You will build it in lesson 04.

# %%
v3 = ModelConfig.preset("v3-671b")
LAYERS, HEADS, WIDTH = v3.num_hidden_layers, v3.num_attention_heads, v3.v_head_dim
CONTEXT = 131_072  # 128K tokens, §4.3


def bytes_per_token(numbers_per_layer, layers=LAYERS, bytes_per_number=2):
    return numbers_per_layer * layers * bytes_per_number


schemes = {"MHA, 128 heads": 2 * HEADS * WIDTH}
schemes |= {f"GQA, {groups} groups": 2 * groups * WIDTH for groups in (16, 8, 4, 2)}
schemes |= {"MQA": 2 * WIDTH, "MLA (lesson 04)": v3.kv_lora_rank + v3.qk_rope_head_dim}
mla = bytes_per_token(schemes["MLA (lesson 04)"])
print(f"{'':16} {'numbers/layer':>13} {'bytes/token':>12} {'against MLA':>12} {'128K context':>13}")
for name, numbers in schemes.items():
    size = bytes_per_token(numbers)
    context = f"{size * CONTEXT / 1e9:.2f} GB"
    print(f"{name:16} {numbers:13,} {size:12,} {size / mla:11.2f}x {context:>13}")

# %% [markdown]
# ## Reveal

# %%
without, with_it = work(512, 512, with_cache=False)[0], work(512, 512, with_cache=True)[0]
guess_1.reveal(
    "c", f"{without:,} tokens against {with_it:,}, {without / with_it:.0f} times as many."
)

# %%
needed = bytes_per_token(2 * HEADS * WIDTH) * CONTEXT / 1e9
guess_2.reveal(round(needed), "for one text of one user.")

# %%
groups = schemes["MLA (lesson 04)"] / (2 * WIDTH)
print(f"MLA has the cache of GQA with {groups:.2f} groups")

# %% [markdown]
# For comparison: the 671 billion weights of the model (abstract) at one byte each would be 671 GB. With plain attention
# two long texts would take more memory than the whole model.
#
# Look at the table again. Is MLA the smallest cache? No: GQA with 2 groups and MQA are smaller. The point of MLA is
# another one: the report calls its quality comparable to that of MHA (§2.1.1), at the cache of about 2.25 groups.
# Whether sharing keys costs quality is not a question of bytes, and no formula on this page answers it.

# %% [markdown]
# ## Check against the package
#
# `MultiHeadAttention` takes `num_kv_heads`, and a list as `cache` that it fills. Our weights go in, for all three
# schemes; our full pass and its prefill and decode steps must agree. PyTorch's own attention shares keys when asked by
# `enable_gqa`.

# %%
for G in (4, 2, 1):
    package = MultiHeadAttention(hidden_size=D, num_heads=H, head_dim=K, num_kv_heads=G)
    layers = (package.q_proj, package.k_proj, package.v_proj, package.o_proj)
    with torch.no_grad():
        for layer, w in zip(layers, (w_q, w_k[:, : G * K], w_v[:, : G * K], w_o), strict=True):
            layer.weight.copy_(w.T)
        package_cache = []
        steps = [package(text[:, :5], cache=package_cache)]
        steps += [package(text[:, t : t + 1], cache=package_cache) for t in range(5, 12)]
    q, k, v = project_grouped(text, w_k[:, : G * K], w_v[:, : G * K])
    k_read, v_read = k.repeat_interleave(H // G, dim=1), v.repeat_interleave(H // G, dim=1)
    ours = attend(q, k_read, v_read, may_see=torch.ones(12, 12).tril().bool())
    difference = (ours - torch.cat(steps, dim=1)).abs().max().item()
    print(f"max |diff| against the package, G = {G}, in steps: {difference:.1e} (tolerance 1e-05)")
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    theirs = theirs.transpose(1, 2).flatten(-2) @ w_o
    difference = (ours - theirs).abs().max().item()
    print(f"max |diff| against PyTorch's enable_gqa, G = {G}: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# ## Play
#
# The picture of this lesson: bytes per token, on a logarithmic scale (each grid line is ten times the one before). Add
# a model of your own: change the three numbers in `mine` and run the cell. Which of them moves the bar most easily?

# %%
mine = {"layers": 32, "kv_heads": 8, "head_dim": 128}  # yours: change and run again

bars = {name: bytes_per_token(numbers) for name, numbers in schemes.items()}
bars["yours"] = bytes_per_token(2 * mine["kv_heads"] * mine["head_dim"], layers=mine["layers"])
fills = [style.BLUE] * (len(bars) - 2) + [style.VERMILLION, style.tint(style.GREEN, 0.45)]
figure, ax = plt.subplots(figsize=(7.2, 3.9))
drawn = ax.barh(list(bars), list(bars.values()), color=fills, edgecolor=style.INK, height=0.7)
drawn[-2].set_hatch("//")
for y, size in enumerate(bars.values()):
    ax.text(size * 1.15, y, f"{size:,}", va="center", fontsize=10)
ax.set(xscale="log", xlim=(1e4, 3e7), xlabel="bytes per token, all layers (log scale)")
ax.set_title("What one token leaves in memory")
ax.invert_yaxis()
ax.grid(axis="x")
ax.set_axisbelow(True)
plt.show()
print(f"yours: a text of 8192 tokens takes {bars['yours'] * 8192 / 1e9:.2f} GB")

# %% [markdown]
# *In words: from MHA with 3,997,696 bytes the bars get shorter with every halving of the groups, down to MQA with
# 31,232. MLA, 70,272 bytes, stands between GQA with 4 and with 2 groups.*

# %% [markdown]
# ## Exercises


# %% tags=["exercise"]
# Exercise 2.1 (5 minutes): how long a text fits? `memory` bytes are left for the cache of `texts` texts
# that are written at the same time; 2 bytes per number.
def longest_context(memory, layers, kv_heads, head_dim, texts=1):
    """-> the largest whole number of tokens that each of the texts can have."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("2.1").hint(), and in the end exercise("2.1").solution()
exercise("2.1").check(longest_context)


# %% tags=["exercise"]
# Exercise 2.2 (5 minutes): hand each query head its key/value head. Neighbours share: with 4 heads and
# 2 groups, heads 0 and 1 read group 0, heads 2 and 3 read group 1. (Try it without repeat_interleave.)
def expand_groups(k, heads):
    """k [B, G, S, K] -> [B, heads, S, K]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("2.2").hint(), and in the end exercise("2.2").solution()
exercise("2.2").check(expand_groups)


# %% tags=["exercise"]
# Exercise 2.3 (10 minutes): several new tokens at once, behind a cache. Which slots may each of them see?
# (Reading a long prompt in pieces needs this, and so does checking a draft of several tokens, lesson 12.)
def chunk_mask(start, new):
    """`start` tokens are cached, `new` come now -> bool [new, start + new], True where allowed."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("2.3").hint(), and in the end exercise("2.3").solution()
exercise("2.3").check(chunk_mask)


# %% tags=["exercise"]
# Exercise 2.4 (10 minutes): one decode step for B texts of different lengths, which share one buffer of S slots.
# Keys and values of the newest token are written already; what lies behind a text is not its own.
def decode_batch(q, k, v, lengths):
    """q [B, H, K] of each newest token; k, v [B, H, S, K]; lengths [B], slots that are written -> [B, H, K]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("2.4").hint(), and in the end exercise("2.4").solution()
exercise("2.4").check(decode_batch)


# %% tags=["exercise"]
# Exercise 2.5 (15 minutes): let a model write. Always take the token with the highest score.
# model(tokens [T], positions [T], cache) -> scores [T, letters] of the next token behind each of the T;
# `cache` is a list, empty before the first call; each call appends to it what it needs to remember.
def write(model, prompt, new):
    """prompt [T], whole numbers -> list of the `new` tokens that follow it. No token is read twice."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("2.5").hint(), and in the end exercise("2.5").solution()
exercise("2.5").check(write)

# %% [markdown]
# ## Bug museum
#
# Both exhibits decode. Read the code, say what you will see, run it, then find the cause.
#
# ### Exhibit 2.A: a cache without the position offset

# %%
exhibit("2.A").show()

# %% tags=["predict"]
exhibit("2.A").predict()

# %%
exhibit("2.A").run()

# %% [markdown]
# Where does the first right letter come from, and the first wrong one?

# %%
exhibit("2.A").diagnose()

# %% [markdown]
# ### Exhibit 2.B: reading slots that nobody wrote

# %%
exhibit("2.B").show()

# %% tags=["predict"]
exhibit("2.B").predict()

# %%
exhibit("2.B").run()

# %% [markdown]
# *In words: each empty slot gets a share, hardly less than a written one, and there are many more of them.* How can an
# empty slot get anything?

# %%
exhibit("2.B").diagnose()

# %% [markdown]
# ## What the report says
#
# * **§2.1.1.** MLA is there to shrink the KV cache at inference. Only the two boxed vectors are cached: the latent of
#   Eq. 1 and the positional key of Eq. 3. The quality is called comparable to standard multi-head attention.
# * **§4.2.** 61 layers, 128 heads of width 128, latent 512, positional key 64: all that the table above was computed
#   from. The report itself prints no table of cache sizes.
# * **§4.3.** The context is extended to 128K tokens.
# * **§3.4.1 and §3.4.2.** Prefill and decode are so different that they run on different machines: a unit for prefill
#   has 32 GPUs, one for decode 320.

# %% [markdown]
# ## Recap
#
# * Old keys and values never change, so keep them; old queries are not needed, so drop them.
# * Prefill reads the prompt in one pass; a decode step has one query, needs no mask, and needs its true position.
# * With the cache a new token passes through the matrices alone, and looks once at everything kept. The price is
#   memory: `2 * G * K` numbers per token and layer.
# * MHA, GQA and MQA differ in `G` alone.
# * To test: prefill and several steps against one full pass, and a second text in the same cache.
#
# In the idea graph you are at *KV cache (576 values/token/layer)*. **Next:** [03 Positions](03_positions.ipynb). The
# small model of exhibit 2.A learned a vector for each position by heart. What about a position that it never saw?
