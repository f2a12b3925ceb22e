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
# # 04 MLA
#
# *About an hour with the exercises. You need [01 Attention](01_attention.ipynb), [02 The KV cache](02_kv_cache.ipynb)
# and [03 Positions](03_positions.ipynb). This is the lesson where attention becomes DeepSeek-V3's.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import matplotlib.pyplot as plt
    import torch
    from torch import nn

    from dsv3_mini import ModelConfig
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.generate.cache import LatentCache
    from dsv3_mini.model.mla import MLA
    from dsv3_mini.model.norm import rms_norm_reference
    from dsv3_mini.model.rope import RotaryEmbedding, apply_rope
    from dsv3_mini.viz import style
    from dsv3_mini.viz.idea_graph import draw_idea_graph
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
# A model that writes keeps the keys and values of every earlier token. Lesson 02 counted them. Here is the bill for
# plain multi-head attention with the sizes of DeepSeek-V3 (§4.2: 61 layers, 128 heads of width 128), two bytes a
# number:

# %%
v3 = ModelConfig.preset("v3-671b")
mha_numbers = 2 * v3.num_attention_heads * v3.v_head_dim  # keys and values, per token and layer
mha_bytes = mha_numbers * v3.num_hidden_layers * 2
print(f"{mha_numbers:,} numbers per token and layer, {mha_bytes:,} bytes per token")
print(f"one conversation of 131,072 tokens: {mha_bytes * 131_072 / 1e9:,.0f} GB")

# %% [markdown]
# Grouped-query attention pays less by letting many heads share one key and one value. A head that shares its keys can
# no longer look for something of its own.
#
# **Can all 128 heads keep keys and values of their own, while the cache holds almost nothing?**
#
# Before you read on: the keys of all 128 heads are computed from the *same* vector, the token's hidden state. How many
# independent numbers can there be in them? What could you store instead of the keys?

# %% [markdown]
# ## What you will be able to do
#
# * Write MLA from the eleven equations of §2.1.1, with shapes, and say what is cached and why it is enough.
# * Show with numbers why the position needs a key of its own.
# * Cut the fused matrices of the released checkpoint into the report's, and load yours into the package.
# * Compute the cache of any scheme, that of DeepSeek-V3 included, and say honestly what it is smaller than.
# * Write the cached part of MLA as a module that the released weights fit into.
# * Recognise two bugs that a quick test does not see.

# %% [markdown]
# ## Predict
#
# Two guesses. For the first one: the plain cache is printed above.

# %% tags=["predict"]
guess_1 = predict(
    "4.p1",
    "Plain attention would keep 3,997,696 bytes of each token. How many bytes does the cache of DeepSeek-V3 keep?",
    unit="bytes",
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "4.p2",
    "Same heads, same widths: which scheme has the smallest cache of all?",
    choices={
        "a": "GQA with 8 groups",
        "b": "MQA, one key and one value for all heads",
        "c": "MLA, as in DeepSeek-V3",
    },
)
guess_2

# %% [markdown]
# ## Build it
#
# ### Keys out of a bottle
#
# We work at a small size. Values get another width than keys, so that a mix-up of the two cannot hide.
#
# Shapes: `B` batch, `T` tokens, `D` width of a token, `H` heads, `N` width of a key without position, `R` width of the
# positional key, `V` width of a value, `C` width of the latent. In the report: $d$, $n_h$, $d_h$, $d_h^R$, $d_h$,
# $d_c$.

# %%
cfg = ModelConfig.preset(
    "nano", hidden_size=256, num_attention_heads=8, q_lora_rank=128, kv_lora_rank=64,
    qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=24,
)  # fmt: skip
D, H = cfg.hidden_size, cfg.num_attention_heads
N, R, V = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim
C, C_q = cfg.kv_lora_rank, cfg.q_lora_rank
B, T = 2, 12

torch.set_grad_enabled(False)  # nothing is trained in this lesson
torch.manual_seed(0)
x = torch.randn(B, T, D)  # the hidden states h_t of T tokens


def matrix(rows, columns):
    """A random matrix [rows, columns] that keeps the size of what goes through it."""
    return torch.randn(rows, columns) / columns**0.5


print(f"D {D}, H {H}, N {N}, R {R}, V {V}, C {C};  x {list(x.shape)}")

# %% [markdown]
# Plain attention has one large matrix from the hidden state to all keys, `D` to `H * N`. MLA builds it from two thin
# ones, with a narrow place between them:
#
# $$\mathbf c^{KV}_t = W^{DKV}\,\mathbf h_t \qquad \mathbf k^C_t = W^{UK}\,\mathbf c^{KV}_t \qquad
# \mathbf v^C_t = W^{UV}\,\mathbf c^{KV}_t \qquad\text{(Eq. 1, 2, 5)}$$
#
# "D" is for down, "U" for up. The narrow vector $\mathbf c^{KV}$ is the **latent**. Keys *and* values of *all* heads
# come out of the same one: that is what the report calls joint compression.

# %%
W = {
    "DKV": matrix(C, D),  # W^DKV [C, D]
    "UK": matrix(H * N, C),  # W^UK [H * N, C]
    "UV": matrix(H * V, C),  # W^UV [H * V, C]
}
latent = x @ W["DKV"].T  # [B, T, D] -> [B, T, C]
k_c = (latent @ W["UK"].T).unflatten(-1, (H, N))  # [B, T, H * N] -> [B, T, H, N]
v_c = (latent @ W["UV"].T).unflatten(-1, (H, V))  # [B, T, H, V]
print(f"keys {list(k_c.shape)} and values {list(v_c.shape)}: {H * N + H * V} numbers a token")
print(f"latent {list(latent.shape)}: {C} numbers a token, enough to make all of them again")

# %% [markdown]
# Every head has a key of its own. What did it cost? Look at the large matrix that the two thin ones stand for:

# %%
together = W["UK"] @ W["DKV"]  # [H * N, D]: what plain attention would call w_k
plain = matrix(H * N, D)
print(f"rank of a plain key matrix {list(plain.shape)}: {torch.linalg.matrix_rank(plain)}")
print(f"rank of W^UK W^DKV {list(together.shape)}: {torch.linalg.matrix_rank(together)}")
different = len(torch.unique(k_c[0, 0], dim=0))
print(f"different keys among the {H} heads of one token: {different}")

# %% [markdown]
# The price is rank: all keys and values of all heads together live in `C` dimensions, and training has to find out
# which. The report finds the quality comparable to plain attention (§2.1.1).
#
# ### Read the latent without opening it
#
# For now keys have no position. The score of one head is a query times a rebuilt key, and matrices can be bracketed
# differently:
#
# $$\mathbf q^\top (W^{UK}\mathbf c) = (W^{UK\top}\mathbf q)^\top \mathbf c$$
#
# On the left every old token's key is rebuilt. On the right the *query* goes through the matrix, once, and then reads
# the latents as they are. This is called **absorption**. Lesson 05 is about it; here we only need to know that it
# works.

# %%
W_uk_0 = W["UK"][:N]  # [N, C], head 0
q_0 = torch.randn(T, N)  # queries of head 0
c_0 = latent[0]  # [T, C]
rebuilt = q_0 @ (c_0 @ W_uk_0.T).T  # [T, T]
absorbed = (q_0 @ W_uk_0) @ c_0.T  # [T, C] @ [C, T] -> [T, T]
print(f"max |diff| against rebuilt keys: {(rebuilt - absorbed).abs().max():.1e} (tolerance 1e-04)")
print(f"for comparison, a typical score is {rebuilt.std():.1f}")

# %% [markdown]
# ### Then position comes between
#
# Lesson 03 put the position into attention by turning queries and keys: $R_t$ turns by the angles of position $t$. Turn
# the keys that come out of the bottle, and the score is
#
# $$(R_t\,\mathbf q)^\top (R_j\,W^{UK}\mathbf c_j) = \mathbf q^\top R_{j-t}\,W^{UK}\mathbf c_j$$
#
# A rotation now stands *between* the query and $W^{UK}$. What can we do about it? Two ideas come to mind. One: turn the
# query, and absorb as before. Two: turn the latent instead of the key. Do you expect either of them to work?

# %%
full_rope = RotaryEmbedding(cfg.replace(qk_rope_head_dim=N))  # as wide as a whole key
wide_rope = RotaryEmbedding(cfg.replace(qk_rope_head_dim=C))  # as wide as the latent
T_long = 256
c_0 = torch.randn(T_long, D) @ W["DKV"].T  # the latents of a longer text, [T_long, C]
q_0 = torch.randn(T_long, N)


def turn(vectors, rope):
    """vectors [T, width], one for each position -> the same, each turned by the angles of its position."""
    return apply_rope(vectors[None, :, None], *rope(torch.arange(len(vectors))))[0, :, 0]


right = turn(q_0, full_rope) @ turn(c_0 @ W_uk_0.T, full_rope).T  # [T_long, T_long]
absorbed = turn(q_0, full_rope) @ W_uk_0  # [T_long, C]
attempts = {
    "turn the query, absorb, leave the keys": absorbed @ c_0.T,
    "turn the query, absorb, turn the latent": absorbed @ turn(c_0, wide_rope).T,
    "give up: call every score zero": torch.zeros_like(right),
}
for name, scores in attempts.items():
    print(f"{name:40} off by {(right - scores).abs().mean():.1f} on average")

# %% [markdown]
# Both do no better than giving up. A turn and the up-projection do not commute: $R\,W^{UK} \ne W^{UK} R'$. The matrix
# that would have to be absorbed is $R_{j-t}\,W^{UK}$, and there is a different one for every distance:

# %%
far = torch.tensor([0, 1, 2, 10, 100])
cos, sin = full_rope(far)
columns = W_uk_0.T.unsqueeze(0)  # [1, C, N]: its C columns, as vectors of width N
print("distance   how much R W^UK differs from W^UK")
for i, distance in enumerate(far.tolist()):
    moved = apply_rope(columns, cos[i], sin[i])[0].T  # [N, C], R_distance W^UK
    print(f"{distance:8}   {(moved - W_uk_0).norm() / W_uk_0.norm():.2f}")

# %% [markdown]
# So with turned keys the cache would have to hold all of them, or every step would have to rebuild the keys of the
# whole past. §2.1.1 gives the cure without the reason; the reason is what you have just measured.
#
# ### The cure: a small key for the position alone
#
# Split the work. The content key $\mathbf k^C$ carries no position and can be absorbed. A second, short key carries the
# position and nothing else. It is turned *before* it is cached, so nobody has to turn it again:
#
# $$\mathbf k^R_t = \mathrm{RoPE}(W^{KR}\,\mathbf h_t) \qquad \mathbf k_{t,i} = [\mathbf k^C_{t,i};\ \mathbf k^R_t]
# \qquad\text{(Eq. 3, 4)}$$
#
# The index $i$ counts heads. It is missing on $\mathbf k^R_t$: **one positional key serves all heads**, as in MQA. It
# is made from the hidden state and not from the latent. The report gives no reason. What matters is that it is cached
# by itself, after the turn; made from the hidden state, it does not have to fit through the bottleneck as well.

# %%
rope = RotaryEmbedding(cfg)  # width R
cos, sin = rope(torch.arange(T))  # [T, R / 2] each
W["KR"] = matrix(R, D)  # W^KR [R, D]
k_r = (x @ W["KR"].T).unsqueeze(-2)  # [B, T, 1, R]: one head
k_r = apply_rope(k_r, cos, sin).squeeze(-2)  # [B, T, R]
key = torch.cat([k_c, k_r.unsqueeze(-2).expand(-1, -1, H, -1)], dim=-1)  # [B, T, H, N + R]
print(f"k_r {list(k_r.shape)} is copied to {H} heads; a whole key is {N} + {R} wide")
print(f"keys of all heads: {list(key.shape)}")
print(f"cached per token and layer: {C} + {R} = {C + R} numbers")
one, all_heads = v3.qk_rope_head_dim, v3.num_attention_heads * v3.qk_rope_head_dim
print(f"positional keys in V3: {one} for all heads; one for each head would be {all_heads:,}")

# %% [markdown]
# ### Queries, and two norms
#
# Queries are compressed too, with a latent of their own. That saves no cache (queries are never cached) but activation
# memory during training (§2.1.1). Each head has its own positional query:
#
# $$\mathbf c^Q_t = W^{DQ}\mathbf h_t \qquad \mathbf q^C_t = W^{UQ}\mathbf c^Q_t \qquad
# \mathbf q^R_t = \mathrm{RoPE}(W^{QR}\mathbf c^Q_t) \qquad\text{(Eq. 6 to 8)}$$
#
# One thing the equations leave out. A single sentence of §4.2 says that an RMSNorm sits behind each compressed latent.
# In the released code it is the latent *after* the norm that goes into the up-projections and into the cache; the
# positional key is not normalised. We give the norms uneven weights, as training would: a norm of all ones hides bugs.
#
# Now all of it, in three functions: `queries`, `compress` (what is cached) and `attend`.

# %%
W |= {
    "DQ": matrix(C_q, D),  # W^DQ [C', D]
    "UQ": matrix(H * N, C_q),  # W^UQ [H * N, C']
    "QR": matrix(H * R, C_q),  # W^QR [H * R, C']
    "O": matrix(D, H * V),  # W^O [D, H * V]
    "q_norm": 1 + 0.2 * torch.randn(C_q),
    "kv_norm": 1 + 0.2 * torch.randn(C),
}


def queries(x, cos, sin):
    """Eq. 6 to 9. x [B, T, D] -> content part [B, T, H, N], turned positional part [B, T, H, R]."""
    c_q = rms_norm_reference(x @ W["DQ"].T, W["q_norm"], 1e-6)  # [B, T, C']
    q_c = (c_q @ W["UQ"].T).unflatten(-1, (H, N))
    q_r = (c_q @ W["QR"].T).unflatten(-1, (H, R))
    return q_c, apply_rope(q_r, cos, sin)


def compress(x, cos, sin):
    """Eq. 1 and 3: everything that is cached. x [B, T, D] -> latent [B, T, C], turned shared key [B, T, R]."""
    latent = rms_norm_reference(x @ W["DKV"].T, W["kv_norm"], 1e-6)
    k_r = (x @ W["KR"].T).unsqueeze(-2)  # [B, T, 1, R]: one head
    return latent, apply_rope(k_r, cos, sin).squeeze(-2)


# %% [markdown]
# `attend` takes the latents of all tokens so far, `S` of them, and queries of the last `T`. A score is divided by the
# square root of the width of a *whole* key, content and position together:
#
# $$\mathbf o_{t,i} = \sum_{j=1}^{t} \mathrm{Softmax}_j\!\left(\frac{\mathbf q_{t,i}^\top \mathbf k_{j,i}}
# {\sqrt{d_h + d_h^R}}\right) \mathbf v^C_{j,i} \qquad \mathbf u_t = W^O[\mathbf o_{t,1}; \dots; \mathbf o_{t,n_h}]
# \qquad\text{(Eq. 10, 11)}$$


# %%
def attend(q_c, q_r, latent, k_r):
    """Eq. 2, 4, 5, 10, 11. Queries of the last T tokens, latent [B, S, C], k_r [B, S, R] -> [B, T, D]."""
    T, S = q_c.shape[1], latent.shape[1]
    k_c = (latent @ W["UK"].T).unflatten(-1, (H, N))  # [B, S, H, N]
    v_c = (latent @ W["UV"].T).unflatten(-1, (H, V))  # [B, S, H, V]
    q = torch.cat([q_c, q_r], dim=-1)  # [B, T, H, N + R]
    k = torch.cat([k_c, k_r.unsqueeze(-2).expand(-1, -1, H, -1)], dim=-1)  # [B, S, H, N + R]
    scores = torch.einsum("bthn,bshn->bhts", q, k) / (N + R) ** 0.5
    may_see = torch.ones(T, S, dtype=torch.bool).tril(S - T)  # query t stands at position S - T + t
    shares = scores.masked_fill(~may_see, float("-inf")).softmax(-1)  # [B, H, T, S]
    out = torch.einsum("bhts,bshv->bthv", shares, v_c)  # [B, T, H, V]
    return out.flatten(-2) @ W["O"].T  # [B, T, H * V] -> [B, T, D]


y = attend(*queries(x, cos, sin), *compress(x, cos, sin))
print(f"x {list(x.shape)} -> y {list(y.shape)}")

# %% [markdown]
# The same as a picture. What stands in a double frame is cached, all else is made again or thrown away.
#
# ```text
#                       hidden state h_t
#        ┌─────────────────────┼──────────────────────┐
#      W^DQ                  W^KR                   W^DKV
#        │                     │                      │
#      norm                  RoPE                   norm
#        │                     │                      │
#       c^Q                ╔═══════╗             ╔════════╗
#    ┌───┴───┐             ║  k^R  ║             ║  c^KV  ║
#  W^UQ    W^QR            ╚═══════╝             ╚════════╝
#    │       │                 │ one for          ┌───┴───┐
#    │     RoPE                │ all heads      W^UK    W^UV
#    │       │                 │                  │       │
#   q^C     q^R                │                 k^C     v^C
#    └───┬───┘                 └────────┬─────────┘       │
#     query                            key                │
#        └─────────── scores ───────────┘                 │
#                        │                                │
#                     shares ───────── average ───────────┘
#                                         │
#                                        W^O
# ```

# %% [markdown]
# ## Reveal
#
# First: is the small cache enough? Read 8 tokens at once, then continue one at a time, with nothing of the past but the
# two cached vectors. The outputs must be those of the whole text.

# %%
start = 8
latents, keys = compress(x[:, :start], cos[:start], sin[:start])  # the cache after the prefill
steps = [attend(*queries(x[:, :start], cos[:start], sin[:start]), latents, keys)]
for t in range(start, T):
    now = slice(t, t + 1)
    new_latent, new_key = compress(x[:, now], cos[now], sin[now])
    latents, keys = torch.cat([latents, new_latent], dim=1), torch.cat([keys, new_key], dim=1)
    steps.append(attend(*queries(x[:, now], cos[now], sin[now]), latents, keys))
difference = (torch.cat(steps, dim=1) - y).abs().max()
print(f"max |diff| against the whole text at once: {difference:.1e} (tolerance 1e-05)")
print(f"in the cache: latents {list(latents.shape)} and keys {list(keys.shape)}, nothing else")

# %% [markdown]
# And now the bill, at the size of the real model. `naive` is MLA that caches the expanded keys and values, as a first
# implementation would, and as one of the two ways in the released code does.

# %%
L, n_h, d_h = v3.num_hidden_layers, v3.num_attention_heads, v3.qk_nope_head_dim
d_c, d_r = v3.kv_lora_rank, v3.qk_rope_head_dim
numbers = {  # per token and layer
    "naive MLA": n_h * (d_h + d_r) + n_h * d_h,
    "MHA": 2 * n_h * d_h,
    "GQA, 16 groups": 2 * 16 * d_h,
    "GQA, 8 groups": 2 * 8 * d_h,
    "GQA, 4 groups": 2 * 4 * d_h,
    "MLA": d_c + d_r,
    "GQA, 2 groups": 2 * 2 * d_h,
    "MQA": 2 * d_h,
}
mla_bytes = numbers["MLA"] * L * 2
print(f"{'scheme':16}{'per token and layer':>20}{'bytes per token':>18}{'against MLA':>14}")
for scheme, count in numbers.items():
    print(f"{scheme:16}{count:>20,}{count * L * 2:>18,}{count / numbers['MLA']:>13.2f}x")

# %%
times = mha_bytes / mla_bytes
guess_1.reveal(mla_bytes, f"{times:.1f} times less than plain attention")

# %%
mqa, mla = numbers["MQA"], numbers["MLA"]
guess_2.reveal("b", f"MQA keeps {mqa} numbers per token and layer, MLA {mla}")

# %% [markdown]
# **MLA keeps 70,272 bytes per token.** Read the table once more, for what it does *not* say:
#
# * MLA is not the smallest cache. MQA keeps less than half of it, and GQA with two groups a little less. MLA's point is
#   keys and values for all 128 heads at the price of a GQA of a little more than two groups.
# * MLA is not small by itself. Cached the naive way it needs *more* than plain attention, because its keys are wider by
#   the positional part. Small is only the cache of the two boxed vectors of Eq. 1 and 3.

# %% [markdown]
# ## Check against the package
#
# The checkpoint has fewer matrices than the report: those that read the same vector are stacked into one, so that one
# product does the work of two.
#
# | name in the checkpoint | the report's | stacked how |
# |---|---|---|
# | `q_a_proj` | $W^{DQ}$ | |
# | `q_b_proj` | $W^{UQ}, W^{QR}$ | head by head: `N` rows, then `R` rows |
# | `kv_a_proj_with_mqa` | $W^{DKV}, W^{KR}$ | `C` rows, then `R` rows; "mqa" is the key that all heads share |
# | `kv_b_proj` | $W^{UK}, W^{UV}$ | head by head: `N` rows, then `V` rows |
# | `o_proj` | $W^O$ | |
# | `q_a_layernorm`, `kv_a_layernorm` | the two norms | |
#
# "Head by head" is where loaders go wrong. We stack our matrices and load them into the package's `MLA`.


# %%
def stack_by_head(first, second):
    """[H * a, C] and [H * b, C] -> [H * (a + b), C] with the rows of each head together."""
    first, second = first.unflatten(0, (H, -1)), second.unflatten(0, (H, -1))  # [H, a or b, C]
    return torch.cat([first, second], dim=1).flatten(0, 1)


package = MLA(cfg)
package.load_state_dict(
    {
        "q_a_proj.weight": W["DQ"],
        "q_a_layernorm.weight": W["q_norm"],
        "q_b_proj.weight": stack_by_head(W["UQ"], W["QR"]),
        "kv_a_proj_with_mqa.weight": torch.cat([W["DKV"], W["KR"]]),
        "kv_a_layernorm.weight": W["kv_norm"],
        "kv_b_proj.weight": stack_by_head(W["UK"], W["UV"]),
        "o_proj.weight": W["O"],
    }
)
difference = (y - package(x, cos, sin)).abs().max()
print(f"max |diff| against dsv3_mini.model.mla: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# The package has a cache of its own, `LatentCache`, and reads it in the absorbed way. Same prefill, same steps:

# %%
cache = LatentCache(cfg.replace(num_hidden_layers=1), batch=B, max_len=T)
steps = []
for piece in (x[:, :start], *x[:, start:].split(1, dim=1)):
    at = cache.begin(piece.shape[1])  # positions [B, new]
    steps.append(package(piece, *rope(at), cache=cache))
    cache.commit()
difference = (torch.cat(steps, dim=1) - y).abs().max()
print(f"max |diff| against LatentCache, absorbed: {difference:.1e} (tolerance 1e-05)")
real = LatentCache(v3, batch=1, max_len=1, dtype=torch.bfloat16)
print(f"LatentCache at the size of V3 in bf16: {real.bytes_per_token:,} bytes per token")

# %% [markdown]
# And the real sizes, built on the *meta* device, which keeps shapes and no numbers:

# %%
with torch.device("meta"):
    real = MLA(v3)
for name, weight in real.named_parameters():
    print(f"{name:28}{list(weight.shape)!s:>16}")
print(f"one layer: {sum(p.numel() for p in real.parameters()):,} parameters")
plain = 4 * v3.hidden_size * n_h * d_h
print(f"plain attention with the same heads: {plain:,}")

# %% [markdown]
# The bottlenecks save parameters as well as cache.

# %% [markdown]
# ## Play
#
# How long a text fits beside the model? Set the memory that you would give the cache, and design an attention of your
# own: change the latent, the positional key, the number of layers. Where does your line cross the limit?

# %%
memory_gb = 16  # yours: memory for the cache of one conversation
my_layers, my_latent, my_rope = 61, 256, 32  # yours: an MLA of your own

schemes = {
    "MHA": numbers["MHA"] * L * 2,
    "GQA, 8 groups": numbers["GQA, 8 groups"] * L * 2,
    "MLA of V3": mla_bytes,
    "yours": (my_latent + my_rope) * my_layers * 2,
}
context = torch.logspace(3, 6.3, 50)  # tokens
figure, ax = plt.subplots(figsize=(7.2, 4.0))
for (name, size), (colour, line, _) in zip(schemes.items(), style.STYLES, strict=True):
    ax.plot(context, context * size / 1e9, color=colour, linestyle=line)
    style.label_line(ax, context[-1], context[-1] * size / 1e9, name, colour)
ax.axhline(memory_gb, color=style.GREY, linewidth=1, linestyle=":")
style.label_line(ax, 2e6, memory_gb, f"memory: {memory_gb} GB", style.GREY)
ax.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel="cache (GB)", xlim=(1e3, 2e6))
ax.set_title("The cache of one conversation, 61 layers of 128 heads")
plt.show()
for name, size in schemes.items():
    tokens = memory_gb * 1e9 / size
    print(f"{name:14}{size:>12,} bytes per token: {memory_gb} GB hold {tokens:>9,.0f} tokens")

# %% [markdown]
# *In words: four straight, parallel lines. Multi-head attention lies highest, GQA with 8 groups more than ten times
# lower, the MLA of V3 lower again. Where a line crosses the dotted one, memory is full; the printed lines say at how
# many tokens.*
#
# Both axes are logarithmic, so a smaller cache does not change the slope: it moves the line down. A latent of half the
# size buys twice the text. What it costs in quality no count can tell; that takes training.

# %% [markdown]
# ## Exercises
#
# Write your code in place of `...`, run the cell, then the one under it.


# %% tags=["exercise"]
# Exercise 4.1 (5 minutes): the cache of a whole model in MLA's way.
def cache_bytes(config, bytes_per_number=2):
    """A ModelConfig -> bytes that one token takes in the cache, over all layers."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("4.1").hint(), and in the end exercise("4.1").solution()
exercise("4.1").check(cache_bytes)

# %% tags=["exercise"]
# Exercise 4.2 (5 minutes): how many groups would a GQA layer have whose cache is exactly as large as MLA's in V3?
# `d_h`, `d_c` and `d_r` are the widths from the table above. Not necessarily a whole number.
equal_groups = ...  # your number

# %% tags=["check"]
# Stuck? exercise("4.2").hint(), and in the end exercise("4.2").solution()
exercise("4.2").check(equal_groups)


# %% tags=["exercise"]
# Exercise 4.3 (5 minutes): the number that scores are multiplied by (Eq. 10), without YaRN.
def score_scale(config):
    """A ModelConfig -> the factor in front of q . k."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("4.3").hint(), and in the end exercise("4.3").solution()
exercise("4.3").check(score_scale)


# %% tags=["exercise"]
# Exercise 4.4 (10 minutes): take `kv_b_proj` apart again, the inverse of `stack_by_head`.
def split_kv_b(weight, heads, nope_dim):
    """kv_b_proj.weight [H * (N + V), C] -> W^UK [H, N, C] and W^UV [H, V, C]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("4.4").hint(), and in the end exercise("4.4").solution()
exercise("4.4").check(split_kv_b)


# %% tags=["exercise"]
# Exercise 4.5 (20 minutes): the cached part of MLA as a module, with the parameters of the checkpoint and no others:
# `kv_a_proj_with_mqa.weight` and `kv_a_layernorm.weight`. The check loads weights under these names.
class LatentMemory(nn.Module):
    """What a layer caches: x [B, T, D] -> [B, T, C + R], the latents and behind them the positional keys."""

    def __init__(self, config):
        super().__init__()
        ...  # your code here

    def forward(self, x, cos, sin):
        """x [B, T, D], cos and sin [T, R / 2] -> [B, T, C + R]."""
        ...  # your code here


# %% tags=["check"]
# Stuck? exercise("4.5").hint(), and in the end exercise("4.5").solution()
exercise("4.5").check(LatentMemory)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 4.A: a positional key for every head, made from the latent
#
# Here is another way to write exercise 4.5.

# %%
exhibit("4.A").show()

# %% tags=["predict"]
exhibit("4.A").predict()

# %%
exhibit("4.A").run()

# %%
exhibit("4.A").diagnose()

# %% [markdown]
# ### Exhibit 4.B: the cache holds the latent before its norm
#
# And one more, with the right parameters.

# %%
exhibit("4.B").show()

# %% tags=["predict"]
exhibit("4.B").predict()

# %%
exhibit("4.B").run()

# %%
exhibit("4.B").diagnose()

# %% [markdown]
# ## What the report says
#
# * **§2.1.1, Eq. 1 to 5** are `compress` and the first lines of `attend`; the boxed vectors $\mathbf c^{KV}_t$ and
#   $\mathbf k^R_t$ are what is cached. **Eq. 6 to 9** are `queries`, **Eq. 10 and 11** the rest of `attend`.
# * **§2.1.1** says that the cache shrinks while quality stays comparable to multi-head attention. It prints no bytes:
#   the table above is arithmetic from the sizes in **§4.2** ($n_h$ 128, $d_h$ 128, $d_c$ 512, $d_c'$ 1536, $d_h^R$ 64).
# * **§4.2** adds in one sentence the norms behind the latents, and scale factors at the bottlenecks whose values it
#   does not give. The norms are in the released code and here.
# * **§3.2.3**: the up-projections are recomputed in the backward pass instead of being stored.
# * The report has no experiment of MLA against other schemes. It takes MLA over from DeepSeek-V2.
# * The released code turns neighbouring pairs (lesson 03), normalises the latent before it is cached, and decodes by
#   absorption; the report says none of the three.

# %% [markdown]
# ## Recap
#
# * All keys and values of a token come out of one latent. Caching it caches them all.
# * A rotation between query and up-projection cannot be absorbed. So position has a small key of its own, shared by all
#   heads, turned before it is cached.
# * In V3: 512 + 64 numbers per token and layer, 70,272 bytes per token over 61 layers. MQA would be smaller; expanded
#   keys and values would be larger than plain attention.
# * In the checkpoint `kv_a_proj_with_mqa` is [W^DKV; W^KR], and `kv_b_proj` is [W^UK; W^UV] *head by head*.

# %%
draw_idea_graph(highlight=["mla", "kv_cache", "rope_yarn"])

# %% [markdown]
# *In words: the idea graph of the report. The nodes Multi-head Latent Attention, KV cache and Decoupled RoPE key are
# filled: you have built them.*
#
# **Next:** lesson 05, absorption. Your `attend` still rebuilds the keys and values of the whole past at every step.
# What does that cost for one new token at the end of a long text?

# %%
past = 131_072  # tokens, the 128K context of §4.3
rebuild = past * d_c * n_h * 2 * d_h * L  # multiplications: latent -> keys and values, all layers
print(f"rebuilding the past: {rebuild:.1e} multiplications for one token")
weights = 37e9  # active parameters (abstract, §4.2): one multiplication each
print(f"all active weights of the model: {weights:.1e}, {rebuild / weights:,.0f} times less")

# %% [markdown]
# So the past must be read as it is. You have already seen the equation that does it.
