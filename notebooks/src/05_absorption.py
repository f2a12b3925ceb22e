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
# # 05 Absorption
#
# *About 50 minutes. You need [04 MLA](04_mla.ipynb): this lesson decodes with what that one cached.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import time

    import matplotlib.pyplot as plt
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dsv3_mini import ModelConfig
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.course.prediction import Sketch
    from dsv3_mini.generate.cache import LatentCache
    from dsv3_mini.model.decode_cost import decode_cost
    from dsv3_mini.model.mla import MLA
    from dsv3_mini.model.rope import RotaryEmbedding
    from dsv3_mini.viz import style
    from dsv3_mini.viz.idea_graph import draw_idea_graph
    from dsv3_mini.viz.roofline import draw_roofline
except ModuleNotFoundError as missing:
    raise ImportError(
        f"this kernel has no module {missing.name!r}: it is not the kernel of the course. "
        "Start the lessons with `make lab`, and choose Kernel > Change Kernel > Python 3 (ipykernel)."
    ) from None
style.use()
print("ready")

# %% [markdown]
# ## The question
#
# Lesson 04 made the cache small: per token and layer one latent and one positional key. But attention wants keys and
# values, of all 128 heads. Here are the two obvious ways to give it what it wants, at the size of DeepSeek-V3:
#
# * **expanded**: keep the latents, and rebuild all keys and values from them at every step;
# * **naive**: rebuild each token's keys and values once, and keep *those*.

# %%
v3 = ModelConfig.preset("v3-671b")
heads, latent, rope_dim = v3.num_attention_heads, v3.kv_lora_rank, v3.qk_rope_head_dim
nope, value = v3.qk_nope_head_dim, v3.v_head_dim
context = 32_768  # tokens in the cache
print(f"one new token, one layer, {context:,} tokens in the cache")
print(f"{'':10}{'multiplications':>18}{'numbers in the cache':>23}")
attention = context * heads * (nope + rope_dim + value)  # scores and weighted sums
rebuilding = context * heads * latent * (nope + value)
print(f"{'expanded':10}{rebuilding + attention:18,}{context * (latent + rope_dim):23,}")
print(f"{'naive':10}{attention:18,}{context * heads * (nope + rope_dim + value):23,}")
mha = 2 * heads * value
print(f"plain attention with these heads would cache {context * mha:,} numbers")

# %% [markdown]
# The first keeps the cache small and drowns in arithmetic. The second saves the arithmetic and keeps more than plain
# attention, which MLA set out to beat.
#
# **Can one read the small cache and never rebuild a key?**
#
# Before you read on: a score is $\mathbf q^\top (W^{UK} \mathbf c)$. Which of the two products in it would you rather
# do first, when there is one query and a long row of latents?

# %% [markdown]
# ## What you will be able to do
#
# * Decode in the latent: derive it, write it for all heads, and show that no output changes.
# * Say why the scale stays, why the matrices are not melted into one, and why a prefill does not do it.
# * Count operations and bytes of a decode step, and place it on a roofline.
# * Recognise two bugs that no error message and no sample of text gives away.

# %% [markdown]
# ## Predict

# %% tags=["predict"]
guess_1 = predict(
    "5.p1",
    "Expanded against absorbed (decoding in the latent), one new token, one whole attention layer of V3: how many "
    "times as many operations does the expanded way take? Sketch it over the context, from 2^7 = 128 tokens to "
    "2^17 = 131,072.",
    sketch=Sketch(
        x=(7, 9, 11, 13, 15, 17), low=0, high=300,
        x_name="context: 2 to this power", y_name="operations, expanded / absorbed",
    ),
)  # fmt: skip
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "5.p2",
    "For each head and each token of the past, the naive way multiplies 192 + 128 numbers, the absorbed way 576 + 512: "
    "more than three times as many. Which one decodes faster, on a GPU and at a long context?",
    choices={
        "a": "naive, about three times: it has less to compute",
        "b": "about the same",
        "c": "absorbed, about three times",
        "d": "absorbed, tens of times",
    },
)
guess_2

# %% tags=["predict"]
guess_3 = predict(
    "5.p3",
    "64 conversations are decoded together in place of one. Of what does the GPU now do more operations for each byte "
    "that it fetches from memory?",
    choices={
        "a": "of the weights and of the cache",
        "b": "of the weights only",
        "c": "of the cache only",
        "d": "of neither",
    },
)
guess_3

# %% [markdown]
# ## Build it
#
# ### One head, by hand
#
# A key of width two comes out of a latent of width three. The query could wait for the key. Or it could go to the
# latent itself:
#
# $$\mathbf q^\top (W^{UK}\,\mathbf c) \;=\; (W^{UK\top}\,\mathbf q)^\top\, \mathbf c$$

# %%
W_uk = torch.tensor([[1, 0, 2], [3, 1, 0]])  # [N = 2, C = 3]
c = torch.tensor([1, 2, 4])  # the latent of one token
q = torch.tensor([5, 1])  # the query of the new token
k = W_uk @ c  # [N]
q_latent = W_uk.T @ q  # [C]
print(f"key {k.tolist()}, and query . key = {q @ k}")
print(f"query in the latent {q_latent.tolist()}, and that . latent = {q_latent @ c}")

# %% [markdown]
# Only the brackets have moved. One token gains nothing by it. A long past does: on the left every latent goes through
# $W^{UK}$, on the right one query does. The query **absorbs** the matrix.
#
# Sizes for the rest of the lesson. Shapes: `B` batch, `T` new tokens, `S` tokens in the memory, `H` heads, `N` content
# and `R` positional width of a key, `V` width of a value, `C` width of the latent; in the report $n_h$, $d_h$, $d_h^R$,
# $d_h$, $d_c$. Values get a width of their own, so that a mix-up of the two cannot hide.

# %%
cfg = ModelConfig.preset(
    "nano", hidden_size=256, num_attention_heads=8, q_lora_rank=128, kv_lora_rank=64,
    qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=24,
)  # fmt: skip
H, N, R, V, C = 8, 32, 16, 24, 64
B, T, S = 2, 1, 12

torch.set_grad_enabled(False)  # nothing is trained in this lesson
torch.manual_seed(0)
W_uk = torch.randn(H, N, C) / C**0.5  # W^UK, head by head
W_uv = torch.randn(H, V, C) / C**0.5  # W^UV
q_c, q_r = (
    torch.randn(B, T, H, N),
    torch.randn(B, T, H, R),
)  # the new token's queries, turned (lesson 04)
latent, k_r = (
    torch.randn(B, S, C),
    torch.randn(B, S, R),
)  # the cache: latents, turned positional keys

head = 0
waiting = q_c[0, :, head] @ (latent[0] @ W_uk[head].T).T  # [T, N] @ [N, S] -> [T, S]
going = (q_c[0, :, head] @ W_uk[head]) @ latent[0].T  # [T, C] @ [C, S] -> [T, S]
difference = (waiting - going).abs().max()
print(f"max |diff| against the query that waits: {difference:.1e} (tolerance 1e-04)")
print(
    f"one head, {S} tokens: {S * N * C + S * N:,} multiplications when the query waits, "
    f"{N * C + S * C:,} when it goes"
)

# %% [markdown]
# ### All heads, one memory
#
# Each head has its own query and its own $W^{UK}$, so each asks its own question in the latent. What they ask is the
# same for all: one latent a token.

# %%
q_latent = torch.einsum(
    "bthn,hnc->bthc", q_c, W_uk
)  # [B, T, H, N] -> [B, T, H, C], each head its matrix
content = torch.einsum("bthc,bsc->bhts", q_latent, latent)  # [B, H, T, S]

k_c = torch.einsum("bsc,hnc->bshn", latent, W_uk)  # for comparison: keys of all heads, [B, S, H, N]
expanded_content = torch.einsum("bthn,bshn->bhts", q_c, k_c)
print(
    f"queries in the latent {list(q_latent.shape)}, memory {list(latent.shape)}: no letter h in it"
)
print(f"expanded keys {list(k_c.shape)}: {k_c.numel() // latent.numel()} times as many numbers")
difference = (content - expanded_content).abs().max()
print(f"max |diff| against scores of expanded keys: {difference:.1e} (tolerance 1e-04)")

# %% [markdown]
# Many queries, one key: to the device this is multi-query attention (lesson 02), with one very wide key. The heads
# differ all the same, because each query has been through a matrix of its own.
#
# ### Position beside it, and the scale
#
# The positional part was split off in lesson 04 so that it would not stand in the way now. It needs no matrix: query
# and key are turned already. Laid side by side, the two parts of the query fit the cache as it lies there, latent
# first:
#
# $$[\,W^{UK\top}\mathbf q^C;\ \mathbf q^R\,]^\top\, [\,\mathbf c;\ \mathbf k^R\,] \;=\;
# \mathbf q^{C\top}\mathbf k^C + \mathbf q^{R\top}\mathbf k^R$$
#
# Then the scale. These vectors are `C + R` wide, the expanded keys were `N + R` wide. What do we divide by? Compare the
# two scores before any scale:

# %%
memory = torch.cat([latent, k_r], dim=-1)  # [B, S, C + R], what the cache holds
query = torch.cat([q_latent, q_r], dim=-1)  # [B, T, H, C + R]
scores = torch.einsum("bthc,bsc->bhts", query, memory)  # [B, H, T, S]

key = torch.cat([k_c, k_r.unsqueeze(2).expand(-1, -1, H, -1)], dim=-1)  # [B, S, H, N + R]
expanded_scores = torch.einsum("bthn,bshn->bhts", torch.cat([q_c, q_r], dim=-1), key)
print(f"widths: {query.shape[-1]} in the latent, {key.shape[-1]} expanded")
difference = (scores - expanded_scores).abs().max()
print(f"max |diff| against expanded scores, no scale: {difference:.1e} (tolerance 1e-04)")
shares = (scores / (N + R) ** 0.5).softmax(-1)  # so the scale is that of Eq. 10

# %% [markdown]
# They are the same numbers. So they need the same scale, that of Eq. 10, whatever width they were computed in. In V3
# that is one over the square root of 192, the width of a key.
#
# ### Values: sum first, then open
#
# A head's output is a weighted sum of values, and each value is $W^{UV}\mathbf c_j$. A matrix can be taken out of a
# sum:
#
# $$\sum_j a_j\,(W^{UV}\,\mathbf c_j) \;=\; W^{UV} \Big(\sum_j a_j\,\mathbf c_j\Big)$$
#
# So each head sums *latents*, with its own shares, and opens the sum once.

# %%
seen = torch.einsum(
    "bhts,bsc->bthc", shares, latent
)  # [B, T, H, C]: the positional key has done its work
out = torch.einsum("bthc,hvc->bthv", seen, W_uv)  # [B, T, H, V]

v_c = torch.einsum(
    "bsc,hvc->bshv", latent, W_uv
)  # for comparison: values of all heads, [B, S, H, V]
expanded_out = torch.einsum("bhts,bshv->bthv", shares, v_c)
print(f"sums {list(seen.shape)} -> outputs {list(out.shape)}")
difference = (out - expanded_out).abs().max()
print(f"max |diff| against values opened first: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# Together, in one function, and as a picture. What stands in a double frame is cached; nothing that is as long as the
# past is made.
#
# ```text
#      q^C           q^R      ╔════════╗   ╔═══════╗
#       │             │       ║  c^KV  ║   ║  k^R  ║
#     W^UK            │       ╚════════╝   ╚═══════╝
#       └──── query ──┘            └─── memory ─┘
#               └───────── scores ───────┘
#                             │ / sqrt(N + R), softmax
#                          shares ──── sum of c^KV
#                                          │
#                                        W^UV
#                                          │
#                                     head outputs
# ```


# %%
def attend_absorbed(q_c, q_r, memory, W_uk, W_uv, may_see=None):
    """q_c [B, T, H, N], q_r [B, T, H, R], memory [B, S, C + R], may_see [T, S] -> [B, T, H, V]."""
    q_latent = torch.einsum("bthn,hnc->bthc", q_c, W_uk)
    scores = torch.einsum("bthc,bsc->bhts", torch.cat([q_latent, q_r], dim=-1), memory)
    scores = scores / (q_c.shape[-1] + q_r.shape[-1]) ** 0.5
    if may_see is not None:
        scores = scores.masked_fill(~may_see, float("-inf"))
    seen = torch.einsum("bhts,bsc->bthc", scores.softmax(-1), memory[..., : W_uk.shape[-1]])
    return torch.einsum("bthc,hvc->bthv", seen, W_uv)


difference = (attend_absorbed(q_c, q_r, memory, W_uk, W_uv) - expanded_out).abs().max()
print(f"max |diff| against the expanded way: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# ### Why not melt the matrices for good?
#
# The query comes out of $W^{UQ}$ and goes straight into $W^{UK\top}$. No norm and no rotation stands between the two.
# One could multiply them once, and store the product: one matrix less at every step. And likewise $W^O W^{UV}$. How
# large are these products?

# %%
q_rank, width = v3.q_lora_rank, v3.hidden_size
latent_v3 = v3.kv_lora_rank
print(f"{'per layer of V3':22}{'apart':>14}{'melted':>14}{'rank per head':>16}")
apart = heads * nope * (q_rank + latent_v3)
melted = heads * q_rank * latent_v3
print(f"{'W^UQ and W^UK':22}{apart:14,}{melted:14,}{nope:10} of {latent_v3}")
apart = heads * value * (latent_v3 + width)
melted = heads * latent_v3 * width
print(f"{'W^UV and W^O':22}{apart:14,}{melted:14,}{value:10} of {latent_v3}")

# %% [markdown]
# Melted, they are several times as large, in multiplications and in bytes to fetch, and hold no more information: a
# product of two thin matrices has the rank of the thin place, 128 for each head, the width of its content query. So
# "absorbed" is about the order of products, not about new weights.
#
# ### Why a prefill stays expanded
#
# If the latent form is so good, why not always? Count multiplications for one head when `Q` new tokens read a memory
# of `S`:
#
# | | once for each new token | once for each token of the memory | for each pair |
# |---|---|---|---|
# | expanded | | `C (N + V)`: rebuild | `(N + R) + V` |
# | absorbed | `C (N + V)`: absorb and open | | `(C + R) + C` |
#
# The same price, paid on different sides; and a pair costs more in the latent. In a prefill every token is both, so the
# first two columns cost the same, and the pairs decide:

# %%
pair_expanded, pair_absorbed = nope + rope_dim + value, latent_v3 + rope_dim + latent_v3
print(
    f"multiplications for each head and pair: {pair_expanded} expanded, {pair_absorbed:,} absorbed"
)
print(f"{'new':>8}{'in memory':>11}{'expanded / absorbed, operations of the layer':>48}")
for new, total in ((1, 8192), (2, 8192), (64, 8192), (512, 8192), (8192, 8192)):
    costs = [decode_cost(v3, way, total, new=new).flops for way in ("expanded", "absorbed")]
    print(f"{new:8,}{total:11,}{costs[0] / costs[1]:48.2f}")

# %% [markdown]
# `decode_cost` is the package's own count; below we let torch check it. So the same layer needs both ways: expanded
# for prefill and training, absorbed for decoding. Somewhere between lies a break-even; exercise 5.5 looks for it.

# %% [markdown]
# ## Reveal
#
# First the operations, of a whole attention layer with all its projections, for one new token:

# %%
WAYS = ("expanded", "naive", "absorbed")
powers = (7, 9, 11, 13, 15, 17)
ratios = []
print("one layer of V3, one conversation: millions of operations, and of bytes to fetch")
print(f"{'context':>9}" + "".join(f"{way:>20}" for way in WAYS))
for power in powers:
    costs = {way: decode_cost(v3, way, 2**power) for way in WAYS}
    ratios.append(costs["expanded"].flops / costs["absorbed"].flops)
    cells = [f"{cost.flops / 1e6:12,.0f} {cost.bytes / 1e6:6,.0f}" for cost in costs.values()]
    print(f"{2**power:9,}" + "".join(f"{cell:>20}" for cell in cells))

# %%
guess_1.reveal(
    ratios,
    f"At a short context the projections of the new token cost as much as everything else; then the ratio climbs, and "
    f"it levels off, at {ratios[-1]:.0f} times for the longest context here: both ways grow in proportion to the "
    "context, the expanded one that much more steeply.",
)

# %% [markdown]
# Then the bytes. Arithmetic waits for memory: before a number can take part in a product, it has to be fetched. Which
# of the two limits a step depends on its **intensity**, the operations for each byte fetched, and on the device. The
# two numbers of the device are typed here. They are an *assumption*, round numbers for a large GPU such as an H800;
# put in those of yours.

# %%
peak = 1e15  # operations per second in BF16: an assumption, change it
bandwidth = 3e12  # bytes per second from memory: an assumption, change it
costs = {way: decode_cost(v3, way, 32_768) for way in WAYS}
print(f"on this device memory and arithmetic balance at {peak / bandwidth:,.0f} operations a byte")
print(
    f"{'reading the memory':20}{'operations':>14}{'bytes':>14}{'intensity':>12}{'microseconds':>14}  limited by"
)
for way, cost in costs.items():
    computing, fetching = cost.memory_flops / peak, cost.memory_bytes / bandwidth
    limit = "arithmetic" if computing > fetching else "memory"
    row = f"{cost.memory_flops:14.1e}{cost.memory_bytes:14.1e}{cost.memory_intensity:12,.0f}"
    print(f"{way:20}{row}{max(computing, fetching) * 1e6:14,.0f}  {limit}")
times = costs["naive"].memory_bytes / costs["absorbed"].memory_bytes

# %%
guess_2.reveal(
    "d",
    f"the naive way has to fetch {times:.0f} times as many bytes, and with one operation for each it waits for nearly "
    "all of its time. The absorbed way does its extra arithmetic while it waits.",
)

# %%
draw_roofline(
    {way: cost.memory_intensity for way, cost in costs.items()},
    peak=peak, bandwidth=bandwidth, title="Attention over the cache: one step, one layer of V3",
)  # fmt: skip

# %% [markdown]
# *In words: the roof rises to the ridge and is flat from there on. The naive way sits at the far left, deep under the
# peak: it waits for memory. The absorbed way sits just left of the ridge: memory is busy, and arithmetic nearly so. The
# expanded way sits at the far right, at the peak.*
#
# Careful with the expanded point: it stands as high as anything can, and is slow. High on the roof means many
# operations per second, and most of its operations are rebuilding that nobody needs. What counts is the time in the
# table. And that time is the best case, in which rebuilt keys and values never leave the chip. Written out and read
# back, as between two separate operations, they also cost bytes: `decode_cost` counts them with `written_out=True`.
#
# Where does the absorbed point come from? Each number of the memory is fetched once and meets all heads:

# %%
exactly = heads * (2 * latent_v3 + rope_dim) / (latent_v3 + rope_dim)
print(
    f"2 x {heads} x {pair_absorbed:,} operations on 2 x {latent_v3 + rope_dim} bytes: {exactly:.1f} a byte"
)
print(
    f"naive: 2 x {heads} x {pair_expanded} operations on 2 x {heads} x {pair_expanded} bytes: 1 a byte"
)

# %% [markdown]
# The heads are what makes the difference. In the naive way each head has keys of its own, used once. Now the batch:

# %%
print(f"{'batch':>7}{'weights: operations a byte':>30}{'cache: operations a byte':>28}")
for batch in (1, 8, 64, 512):
    cost = decode_cost(v3, "absorbed", 32_768, batch=batch)
    print(f"{batch:7}{cost.weight_intensity:30,.0f}{cost.memory_intensity:28,.0f}")
one, many = (decode_cost(v3, "absorbed", 32_768, batch=batch) for batch in (1, 64))

# %%
guess_3.reveal(
    "b",
    f"for the weights from {one.weight_intensity:.0f} to {many.weight_intensity:.0f} operations a byte, for the cache "
    f"{one.memory_intensity:.0f} before and after. Weights are fetched once for all conversations; each conversation "
    "has a cache of its own.",
)

# %% [markdown]
# That is why servers decode many conversations at once: the weights become cheap. For the cache there is no such
# rebate: it can only be made small, or read by more queries at once. The second is what checking a drafted token does
# (lesson 12).

# %% [markdown]
# ## Check against the package
#
# `MLA` has both ways. Our function gets the weights of such a layer, with `kv_b_proj` cut head by head, and must give
# what the layer gives, by either path:

# %%
torch.manual_seed(1)
package, rope = MLA(cfg), RotaryEmbedding(cfg)
for (
    name,
    weight,
) in package.named_parameters():  # as after training: uneven norms, matrices that keep sizes
    uneven = 1 + 0.2 * torch.randn_like(weight)
    weight.copy_(uneven if "norm" in name else torch.randn_like(weight) / weight.shape[-1] ** 0.5)

T_text = 20
x = torch.randn(B, T_text, cfg.hidden_size)
cos, sin = rope(torch.arange(T_text))
by_head = package.kv_b_proj.weight.unflatten(0, (H, N + V))  # [H, N + V, C]
W_uk, W_uv = by_head[:, :N], by_head[:, N:]


def our_layer(x, cos, sin, past=None):
    """x [B, T, D] and the memory so far [B, S, C + R] -> outputs [B, T, D] and the memory with the new tokens."""
    memory = torch.cat(package.compress(x, cos, sin), dim=-1)
    if past is not None:
        memory = torch.cat([past, memory], dim=1)
    new, total = x.shape[1], memory.shape[1]
    may_see = torch.ones(new, total, dtype=torch.bool).tril(total - new)
    out = attend_absorbed(*package.queries(x, cos, sin), memory, W_uk, W_uv, may_see)
    return package.o_proj(out.flatten(-2)), memory


whole, _ = our_layer(x, cos, sin)
for path in ("expanded", "absorbed"):
    difference = (whole - package(x, cos, sin, path=path)).abs().max()
    print(f"max |diff| against dsv3_mini.model.mla, {path}: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# Now decoding: the package with its `LatentCache`, which prefills expanded and then steps absorbed, and ours, step by
# step.

# %%
start = 12
cache = LatentCache(cfg.replace(num_hidden_layers=1), batch=B, max_len=T_text)
theirs, ours, memory = [], [], None
for piece in (x[:, :start], *x[:, start:].split(1, dim=1)):
    angles = rope(cache.begin(piece.shape[1]))
    theirs.append(package(piece, *angles, cache=cache))
    cache.commit()
    out, memory = our_layer(piece, *angles, memory)
    ours.append(out)
difference = (torch.cat(ours, dim=1) - torch.cat(theirs, dim=1)).abs().max()
print(f"max |diff| against LatentCache, prefill and steps: {difference:.1e} (tolerance 1e-05)")
difference = (memory - cache.store[0]).abs().max()
print(f"max |diff| against what LatentCache holds: {difference:.1e} (tolerance 1e-06)")

# %% [markdown]
# And the counts. torch can count the operations of what really runs:

# %%
cache.crop([T_text - 1] * B)  # forget the last token, and decode it again
angles = rope(cache.begin(1))
with FlopCounterMode(display=False) as counter:
    package(x[:, -1:], *angles, cache=cache, path="absorbed")
expected = decode_cost(cfg, "absorbed", T_text, batch=B)
print(f"operations of one absorbed step: torch counts {counter.get_total_flops():,}")
print(f"decode_cost says                              {expected.flops:,}")
print(f"bytes of the cache in fp32: {cache.store.numel() * 4:,}", end=", ")
print(
    f"decode_cost says {decode_cost(cfg, 'absorbed', T_text, batch=B, bytes_per_number=4).memory_bytes:,}"
)

# %% [markdown]
# Last, a clock, on whatever machine this runs. It is shown for the curious. No sentence of this lesson rests on it:
# times differ from run to run, and a CPU is not the device of the roofline.

# %%
timed = cfg.replace(num_attention_heads=16, kv_lora_rank=128, hidden_size=512, num_hidden_layers=1)
layer, rope_timed = MLA(timed), RotaryEmbedding(timed)


def milliseconds(path, tokens, repeats=5):
    """The fastest of some decode steps with `tokens` in the cache."""
    cache = LatentCache(timed, batch=1, max_len=tokens)
    cache.lengths = [tokens - 1]  # what stands in it does not matter for the time
    angles, x = rope_timed(cache.begin(1)), torch.randn(1, 1, timed.hidden_size)
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        layer(x, *angles, cache=cache, path=path)
        spent.append(time.perf_counter() - began)
    return min(spent) * 1000


print(
    f"{'context':>9}{'expanded':>12}{'absorbed':>12}   milliseconds for one step of a small layer"
)
for tokens in (256, 1024, 4096):
    print(
        f"{tokens:9,}{milliseconds('expanded', tokens):12.2f}{milliseconds('absorbed', tokens):12.2f}"
    )

# %% [markdown]
# ## Play
#
# An attention of your own on a device of your own. Change the heads, the latent, the batch, and see which part of a
# step takes the time, and where the absorbed point moves. When does it cross the ridge? What do two new tokens at once
# do to it?

# %%
my_heads, my_latent = 128, 512  # yours
my_batch, my_new = 32, 1  # yours: conversations at once, new tokens in each
my_peak, my_bandwidth = peak, bandwidth  # yours

mine = v3.replace(num_attention_heads=my_heads, kv_lora_rank=my_latent)
contexts = [2**power for power in range(8, 18)]
figure, ax = plt.subplots(figsize=(7.2, 4.0))
for way, (colour, line, _) in zip(WAYS, style.STYLES):
    costs = [decode_cost(mine, way, tokens, batch=my_batch, new=my_new) for tokens in contexts]
    micro = [cost.seconds(my_peak, my_bandwidth) * 1e6 / my_batch for cost in costs]
    ax.plot(contexts, micro, color=colour, linestyle=line)
    style.label_line(ax, contexts[-1], micro[-1], way, colour, (5, {"naive": -9}.get(way, 3)))
ax.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel="microseconds, at best")
ax.set_xlim(contexts[0], contexts[-1] * 3)
ax.set_title(f"One step of one layer, for each of {my_batch} conversations")
plt.show()
cost = decode_cost(mine, "absorbed", 32_768, batch=my_batch, new=my_new)
print(f"absorbed: {cost.memory_intensity:,.0f} operations a byte of cache, ", end="")
print(f"{cost.weight_intensity:,.0f} a byte of weights; ridge at {my_peak / my_bandwidth:,.0f}")

# %% [markdown]
# *In words: three lines on logarithmic axes. The expanded and the naive way lie close together and rise from the start.
# The absorbed way lies below them and is nearly flat at first, where the weights decide; then it rises, too.*
#
# These are bounds from counting, not forecasts: real kernels stay above them, and what else a model does (the
# experts, above all) is not in the picture.

# %% [markdown]
# ## Exercises
#
# Write your code in the cell that opens with `# Exercise`, run it, then run the cell under it. In the first three you
# build the decode step again, now from the checkpoint's own matrix: `kv_b` stands for `kv_b_proj.weight`,
# `[H * (N + V), C]`, as it lies in the file.


# %% tags=["exercise"]
# Exercise 5.1 (5 minutes): let the query absorb W^UK. Here V = N, as in V3.
def absorb_query(q_c, kv_b):
    """q_c [B, T, H, N], kv_b [H * (N + V), C] -> [B, T, H, C]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("5.1").hint(), and in the end exercise("5.1").solution()
exercise("5.1").check(absorb_query)


# %% tags=["exercise"]
# Exercise 5.2 (5 minutes): scores in the latent, scaled, before mask and softmax.
def latent_scores(q_latent, q_r, memory, nope_dim):
    """q_latent [B, T, H, C], q_r [B, T, H, R], memory [B, S, C + R], nope_dim = N -> [B, H, T, S]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("5.2").hint(), and in the end exercise("5.2").solution()
exercise("5.2").check(latent_scores)


# %% tags=["exercise"]
# Exercise 5.3 (8 minutes): from the shares to the heads' outputs, side by side as o_proj wants them.
# The checker also counts operations: nothing may be rebuilt for each token of the past. V and N differ here.
def latent_output(shares, memory, kv_b, value_dim):
    """shares [B, H, T, S], memory [B, S, C + R], kv_b [H * (N + V), C], value_dim = V -> [B, T, H * V]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("5.3").hint(), and in the end exercise("5.3").solution()
exercise("5.3").check(latent_output)


# %% tags=["exercise"]
# Exercise 5.4 (8 minutes): operations (a multiplication and an addition are two) that one new token costs
# between its query and the output of its heads, in one layer, absorbed: absorb, scores, sum, W^UV.
def absorbed_flops(cfg, context):
    """A ModelConfig and the tokens in the memory -> operations, a whole number."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("5.4").hint(), and in the end exercise("5.4").solution()
exercise("5.4").check(absorbed_flops)

# %% tags=["exercise"]
# Exercise 5.5 (8 minutes): V3, 131,072 tokens in the memory, and several new tokens that read it at once (all of it).
# From how many new tokens on does the expanded way take fewer operations than the absorbed one? decode_cost helps.
break_even = ...  # your number

# %% tags=["check"]
# Stuck? exercise("5.5").hint(), and in the end exercise("5.5").solution()
exercise("5.5").check(break_even)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 5.A: the scale of what is multiplied
#
# Decoding in the latent multiplies vectors that are three times as wide as a key.

# %%
exhibit("5.A").show()

# %% tags=["predict"]
exhibit("5.A").predict()

# %%
exhibit("5.A").run()

# %%
exhibit("5.A").diagnose()

# %% [markdown]
# ### Exhibit 5.B: value rows where key rows belong

# %%
exhibit("5.B").show()

# %% tags=["predict"]
exhibit("5.B").predict()

# %%
exhibit("5.B").run()

# %%
exhibit("5.B").diagnose()

# %% [markdown]
# ## What the report says
#
# * **§2.1.1** says that only the two boxed vectors, $\mathbf c^{KV}_t$ and $\mathbf k^R_t$, need to be cached during
#   generation. It does not say how to attend with them: no absorbed form, no count of operations, no intensity.
# * Absorption is in the **released code** (D10 in `data/differences.json`), as the default of two ways; the other is
#   the naive one, which caches expanded keys and values. That code absorbs in the prefill, too. When to take which way
#   is not in the report.
# * **Eq. 10** gives the scale, from the width of a whole key. It holds in the latent as well.
# * The sizes (**§4.2**): 128 heads, a latent of 512 numbers, a positional key of 64.
# * **§3.4.2** says of decoding, about the experts, that its bottleneck is memory access and not computation. It
#   gives no such sentence for attention; the roofline above is ours, with the assumption that it names.

# %% [markdown]
# ## Recap
#
# * $\mathbf q^\top (W^{UK}\mathbf c) = (W^{UK\top}\mathbf q)^\top \mathbf c$, and $W^{UV}$ can wait until after the
#   sum. All heads then read one memory, as it is cached.
# * The scores are the same numbers as before, so their scale stays.
# * More operations for each pair than the naive way, far fewer bytes; a hundred times fewer operations than rebuilding,
#   at long contexts, for one new token. For many new tokens at once, expanding is cheaper.
# * A batch makes weights cheaper to fetch, never the cache.

# %%
draw_idea_graph(highlight=["mla", "kv_cache"])

# %% [markdown]
# *In words: the idea graph of the report. The nodes Multi-head Latent Attention and KV cache are filled: you can now
# build them and decode with them.*
#
# **Next:** lesson 06, mixture of experts. Attention is a small part of the weights. Where are the others, and why does
# a token need so few of them?

# %%
with torch.device("meta"):
    layer = MLA(v3)
in_attention = sum(p.numel() for p in layer.parameters()) * v3.num_hidden_layers
print(f"parameters in attention, all layers: {in_attention / 1e9:.1f} billion")
