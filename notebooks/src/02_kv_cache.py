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
# writes the next one. For token 1001 it reads the first 1000 tokens all over again, although it has just read 999 of
# them.
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
# * Recognise two bugs that cached decoding is prone to.

# %% [markdown]
# ## Predict
#
# **Guess 1.** A prompt of 512 tokens, then the model writes 512 more. Without any memory it reads the whole text again
# for each of them. How many times more tokens pass through the layer than with a perfect memory? (a) about 2, (b) about
# 20, (c) about 400.
#
# **Guess 2.** A model with the depth and the heads of DeepSeek-V3 (61 layers, 128 heads of width 128) and plain
# multi-head attention, 2 bytes per number. How many gigabytes does it have to remember for *one* text of 131,072
# tokens?

# %% tags=["predict"]
guess_1 = None  # your guess: "a", "b" or "c"
guess_2 = None  # your guess: a number of gigabytes

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
# Nothing changes (a few 1e-8 of rounding at most). Keys and values belong to one token each, and the mask keeps the old
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
# Query heads that stand next to each other share: with `H = 4` and `G = 2`, heads 0 and 1 read key/value head 0, heads
# 2 and 3 read head 1.


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
said = guess_1 or "nothing yet"
print(f"guess 1: you said {said}; {without / with_it:.0f} times more tokens, so (c)")
said = "nothing yet" if guess_2 is None else f"{guess_2} GB"
needed = bytes_per_token(2 * HEADS * WIDTH) * CONTEXT / 1e9
print(f"guess 2: you said {said}; {needed:.0f} GB, for one text of one user")
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
# Exercise 2.1 (10 minutes): several new tokens at once, behind a cache. Which slots may each of them see?
# (Reading a long prompt in pieces needs this, and so does checking a draft of several tokens, lesson 12.)
def chunk_mask(start, new):
    """`start` tokens are cached, `new` come now -> bool [new, start + new], True where allowed."""
    ...  # your code here


# %% tags=["check"]
answer = chunk_mask(3, 2)
if answer is None or answer is ...:
    print("Exercise 2.1: not attempted")
else:
    assert answer.shape == (2, 5), (
        f"the shape is {list(answer.shape)}; it should be [2, 5]: new tokens by all tokens"
    )
    assert answer.dtype == torch.bool, f"the type is {answer.dtype}; it should be torch.bool"
    assert answer[:, :3].all(), "every new token may see everything in the cache (slots 0 to 2)"
    assert not answer[0, 4], "the first new token (slot 3) sees the second one (slot 4), its future"
    assert answer[0, 3], "the first new token should see itself, in slot 3"
    assert answer[1].all(), "the last new token may see every slot"
    assert torch.equal(chunk_mask(0, 4), torch.ones(4, 4).tril().bool()), (
        "with an empty cache this should be the ordinary causal mask"
    )
    cache = KVCache(H, max_len=12)
    q, k, v = project(text[:, :4])
    cache.append(k, v)
    q, k, v = project(text[:, 4:9])
    chunk = attend(q, *cache.append(k, v), may_see=chunk_mask(4, 5))
    assert torch.allclose(chunk, full_pass(text)[:, 4:9], atol=1e-5), (
        "a chunk differs from a full pass"
    )
    print("Exercise 2.1: right")

# %% [markdown] tags=["solution"]
# <details><summary>Solution of exercise 2.1</summary>
#
# ```python
# def chunk_mask(start, new):
#     position = torch.arange(start, start + new)  # of the new tokens
#     slot = torch.arange(start + new)
#     return slot[None, :] <= position[:, None]  # [new, start + new]
# ```
#
# </details>


# %% tags=["exercise"]
# Exercise 2.2 (5 minutes): how long a text fits? `memory` bytes are left for the cache of `texts` texts
# that are written at the same time; 2 bytes per number.
def longest_context(memory, layers, kv_heads, head_dim, texts=1):
    """-> the largest whole number of tokens that each of the texts can have."""
    ...  # your code here


# %% tags=["check"]
answer = longest_context(80e9, layers=61, kv_heads=128, head_dim=128)
if answer is None or answer is ...:
    print("Exercise 2.2: not attempted")
else:
    assert answer == int(answer), f"{answer} is not a whole number of tokens: round down"
    one = 80e9 / (61 * 128 * 128)  # a key, one byte per number
    assert answer not in (int(one), int(one / 2)), (
        f"{answer} tokens: a factor is missing; keys *and* values are cached, 2 bytes per number"
    )
    assert answer != int(one * 61 / 4), "every layer has a cache of its own: the layers are missing"
    assert answer == 20011, f"{answer} tokens; it should be 20011"
    assert longest_context(80e9, 61, 128, 128, texts=4) == 5002, "four texts share the memory"
    assert longest_context(80e9, 61, 1, 128) == 2561475, (
        "with one key/value head it should be 2561475"
    )
    print("Exercise 2.2: right")

# %% [markdown] tags=["solution"]
# <details><summary>Solution of exercise 2.2</summary>
#
# ```python
# def longest_context(memory, layers, kv_heads, head_dim, texts=1):
#     per_token = 2 * kv_heads * head_dim * layers * 2  # key and value; 2 bytes per number
#     return int(memory // (per_token * texts))
# ```
#
# </details>


# %% tags=["exercise"]
# Exercise 2.3 (5 minutes): hand each query head its key/value head. Neighbours share: with 4 heads and
# 2 groups, heads 0 and 1 read group 0, heads 2 and 3 read group 1. (Try it without repeat_interleave.)
def expand_groups(k, heads):
    """k [B, G, S, K] -> [B, heads, S, K]."""
    ...  # your code here


# %% tags=["check"]
k_two = (
    torch.arange(2.0).view(1, 2, 1, 1).expand(1, 2, 5, 3)
)  # group 0 is all zeros, group 1 all ones
answer = expand_groups(k_two, 6)
if answer is None or answer is ...:
    print("Exercise 2.3: not attempted")
else:
    assert answer.shape == (1, 6, 5, 3), (
        f"the shape is {list(answer.shape)}; it should be [1, 6, 5, 3], that is [B, heads, S, K]"
    )
    groups = answer[0, :, 0, 0].int().tolist()
    assert groups != [0, 1, 0, 1, 0, 1], (
        "the groups alternate (0, 1, 0, 1, ...) as with `repeat`; neighbours should share"
    )
    assert groups == [0, 0, 0, 1, 1, 1], (
        f"heads 0..5 read the groups {groups}; want 0, 0, 0, 1, 1, 1"
    )
    some_k = torch.randn(2, 2, 5, 3)
    assert torch.equal(expand_groups(some_k, 4), some_k.repeat_interleave(2, dim=1)), (
        "right heads, wrong tokens or channels: check what happens inside a group"
    )
    print("Exercise 2.3: right")

# %% [markdown] tags=["solution"]
# <details><summary>Solution of exercise 2.3</summary>
#
# ```python
# def expand_groups(k, heads):
#     B, G, S, K = k.shape
#     shared_by = heads // G
#     k = k[:, :, None].expand(B, G, shared_by, S, K)  # no copy yet
#     return k.reshape(B, heads, S, K)
# ```
#
# </details>

# %% [markdown]
# ## Bug museum
#
# For the exhibits we need a model that writes something. Here is a very small one, trained in a second to recite a
# single sentence: letters, a learned vector for each position (lesson 03 does better), one attention layer from the
# package, an output layer.

# %%
SENTENCE = "what is cached need not be computed again; what is wrong in the cache stays wrong. "
letters = sorted(set(SENTENCE))
tokens = torch.tensor([letters.index(letter) for letter in SENTENCE])  # [T]
torch.manual_seed(0)
embed, places = torch.nn.Embedding(len(letters), 64), torch.nn.Embedding(len(tokens), 64)
layer, head = MultiHeadAttention(64, num_heads=4, head_dim=16), torch.nn.Linear(64, len(letters))


def reciter(tokens, positions, cache=None):
    """tokens, positions [T] -> a score for each letter as the next one, [T, letters]."""
    h = (embed(tokens) + places(positions))[None]  # [1, T, 64]
    return head(h + layer(h, cache=cache))[0]


parameters = [p for part in (embed, places, layer, head) for p in part.parameters()]
optimizer = torch.optim.Adam(parameters, lr=1e-2)
for _ in range(60):
    loss = F.cross_entropy(reciter(tokens[:-1], torch.arange(len(tokens) - 1)), tokens[1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss after 60 steps: {loss:.4f}")


@torch.no_grad()
def recite(prompt, new, position_of_step):
    """Prefill, then decode; position_of_step(tokens in the cache) is the new token's position."""
    ids = [letters.index(letter) for letter in prompt]
    cache = []
    scores = reciter(torch.tensor(ids), torch.arange(len(ids)), cache)
    written = ""
    for _ in range(new):
        newest = scores[-1].argmax()
        written += letters[newest]
        stored = cache[0].shape[1]  # [B, S, G, K]
        scores = reciter(newest[None], torch.tensor([position_of_step(stored)]), cache)
    return written


print("what is cach" + recite("what is cach", 40, position_of_step=lambda stored: stored))

# %% [markdown]
# ### Exhibit 2.A: a cache without the position offset
#
# A decode step gets a sequence of one token. Whoever writes `positions = arange(T)` there, as in training, gives it
# position 0. The cache itself is right. What do you expect to read behind the prompt? (a) nonsense from the first
# letter on, (b) one right letter, then nonsense, (c) the right sentence, because the cache knows the order.

# %% tags=["predict"]
guess_a = None  # your guess: "a", "b" or "c"

# %%
prompt = "what is cach"
right = recite(prompt, 30, position_of_step=lambda stored: stored)
exhibit = recite(prompt, 30, position_of_step=lambda stored: 0)
print(f"you said {guess_a or 'nothing yet'}; blanks are written as _")
print("right:   ", f"{prompt}|{right}".replace(" ", "_"))
print("exhibit: ", f"{prompt}|{exhibit}".replace(" ", "_"))

# %% [markdown]
# It is (b). The first letter after the bar comes from the *prefill*, whose positions are right; the first decode step
# is the first wrong one. **Remember the pattern**: right after a prefill and wrong after one step means that the step
# is at fault, not the weights. The position of a new token is the number of tokens before it, which is the length of
# the cache. So a test of decoding must take more than one step: compare with a full pass, as we did above.
#
# ### Exhibit 2.B: reading slots that nobody wrote
#
# A cache with room made in advance, as above. Somebody returns the *whole* buffer, not the part up to `length`; and a
# new text starts by setting `length = 0`. All shapes fit. We ask for text A, then for text B, then for A again. What
# will you see? (a) all three right, (b) the first right, and the second A different from the first, (c) none right.

# %% tags=["predict"]
guess_b = None  # your guess: "a", "b" or "c"


# %%
class LeakyCache(KVCache):
    def append(self, k_new, v_new):
        super().append(k_new, v_new)
        return self.k, self.v  # everything, written or not


def read_in_steps(x, cache):
    cache.length = 0  # a new text begins
    pieces = []
    for t in range(x.shape[1]):
        q, k_new, v_new = project(x[:, t : t + 1])
        pieces.append(attend(q, *cache.append(k_new, v_new)))
    return torch.cat(pieces, dim=1)


torch.manual_seed(5)
text_a, text_b = torch.randn(B, 6, D), torch.randn(B, 20, D)
print(f"you said {guess_b or 'nothing yet'}")
for name, cache in (("right", KVCache(H, max_len=32)), ("exhibit", LeakyCache(H, max_len=32))):
    answers = [read_in_steps(x, cache) for x in (text_a, text_b, text_a)]
    wrong = [
        (y - full_pass(x)).abs().max()
        for y, x in zip(answers, (text_a, text_b, text_a), strict=True)
    ]
    print(f"{name}: difference to a full pass, and between the two answers to A")
    print("   A {:.1e}   B {:.1e}   A again {:.1e}".format(*wrong), end="")
    print(f"   A to A again {(answers[0] - answers[2]).abs().max():.1e}")

# %% [markdown]
# It is (c), and the second A is wrong in another way than the first. **Diagnose it**: how can an empty slot do harm?
# Its key is zero, so its score is zero. That is not "no score": $e^0 = 1$, and it gets its share.

# %%
q, k, v = project(text_a)
last = q[0, 0, -1]  # head 0, query of the last of the six tokens
empty = torch.zeros(32 - 6, K)
shares = (torch.cat([k[0, 0], empty]) @ last / math.sqrt(K)).softmax(-1)
print(f"share of the 26 slots that nobody wrote: {shares[6:].sum():.0%}")

# %% [markdown]
# Most of what the last token "receives" is zeros from empty slots. After text B these slots hold B's keys and values,
# and A's answer is mixed with what somebody else asked before. In a server this is not only wrong, it gives away a
# stranger's text. Either never return what lies beyond `length`, or mask it with $-\infty$; clearing the buffer does
# not help.

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
# reciter learned a vector for each position by heart. What about a position that it never saw?
