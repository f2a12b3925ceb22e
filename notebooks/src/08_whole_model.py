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
# # 08 The whole model
#
# *About 60 minutes. You need [04 Multi-head latent attention](04_mla.ipynb) and
# [06 Mixture of experts](06_mixture_of_experts.ipynb). All parts come together here: a DeepSeek-V3 by your own hands,
# held against two others.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import importlib.util
    import math
    import tempfile

    import matplotlib.pyplot as plt
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from torch import nn

    from dsv3_mini import DeepSeekV3, ModelConfig, load_pretrained, save_pretrained
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.course.prediction import Sketch
    from dsv3_mini.interop.names import disk_layout
    from dsv3_mini.model.count import count_parameters
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train.checkpoint import latest_checkpoint
    from dsv3_mini.train.tokenizer import Tokenizer
    from dsv3_mini.viz import style
    from dsv3_mini.viz.idea_graph import draw_idea_graph
    from dsv3_mini.viz.routing import token_label
except ModuleNotFoundError as missing:
    raise ImportError(
        f"this kernel has no module {missing.name!r}: it is not the kernel of the course. "
        "Start the lessons with `make lab`, and choose Kernel > Change Kernel > Python 3 (ipykernel)."
    ) from None
style.use()
torch.set_grad_enabled(False)  # nothing is trained in this lesson
print("ready")

# %% [markdown]
# ## The question
#
# You have attention (lesson 04), experts (06) and a balanced router (07). What is left is little: how they are put
# together. But then comes a harder question. Here is what the weights of the released model would take on this machine:

# %%
v3 = ModelConfig.preset("v3-671b")
total = count_parameters(v3).total
print(f"{total:,} parameters, {total * 2 / 1e9:,.0f} GB with two bytes for each")

# %% [markdown]
# **How can you be sure that what you built is DeepSeek-V3, when you cannot run DeepSeek-V3?**
#
# Before you read on: what could differ between two implementations without any error message? And which evidence would
# convince you that nothing does?

# %% [markdown]
# ## What you will be able to do
#
# * Put a block together: norms, residuals, attention, dense network or experts; and a model out of blocks.
# * Count 671,026,419,200 parameters by component, and say which two rules give the "37 billion active".
# * Load a folder in the Hugging Face layout by hand, and translate names on disk to names in memory.
# * Show that three implementations compute the same logits, and find the first layer in which two models part.

# %% [markdown]
# ## Predict

# %% tags=["predict"]
guess_1 = predict(
    "8.p1",
    "Attention is in every one of the 61 layers of V3. What percentage of all its parameters is attention?",
    unit="%",
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "8.p2",
    "In a fresh model, the vectors of the tokens run through block after block, and each block adds something. At the "
    "start their numbers have size 1 (root mean square). Sketch their size after 1 to 64 blocks.",
    sketch=Sketch((1, 4, 16, 64), 0, 10, "blocks", "size of the numbers"),
)
guess_2

# %% tags=["predict"]
guess_3 = predict(
    "8.p3",
    "Two people implement the same model apart from each other and load the same weights, in fp32. How far apart are "
    "their logits, whose numbers are about 1 in size?",
    choices={
        "a": "not at all: the same formula gives the same bits",
        "b": "a few millionths",
        "c": "a few thousandths",
        "d": "as far as two random models: some detail always differs",
    },
)
guess_3

# %% [markdown]
# ## Build it
#
# We write the whole model once more, small and plain, with the **names of the checkpoint** for every part. That is the
# trick of this lesson: with the same names, weights can be handed from one implementation to another, and what differs
# shows.
#
# Shapes: `B` batch, `T` tokens, `D` width, `H` heads, `N`, `R`, `V` widths of content, position and value in a head,
# `C` latent, `E` experts, `K` per token, `F` width of an expert.
#
# ### Norm and attention
#
# From lessons 03 and 04, shortened. The fused matrices are cut open as lesson 04 explains.


# %%
class Norm(nn.Module):
    """Divide by the root mean square, times a weight for each channel."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def linear(rows, columns):
    return nn.Linear(rows, columns, bias=False)


def turn(x, theta):
    """RoPE: x [B, T, H, R], each pair of neighbours turned by the angles of its position."""
    T, R = x.shape[1], x.shape[-1]
    angles = torch.arange(T)[:, None] * theta ** (-torch.arange(0, R, 2) / R)  # [T, R / 2]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # [T, 1, R / 2]
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class Attention(nn.Module):
    """MLA, x [B, T, D] -> [B, T, D]."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        H, N, V = cfg.num_attention_heads, cfg.qk_nope_head_dim, cfg.v_head_dim
        R, C = cfg.qk_rope_head_dim, cfg.kv_lora_rank
        self.q_a_proj = linear(cfg.hidden_size, cfg.q_lora_rank)
        self.q_a_layernorm = Norm(cfg.q_lora_rank)
        self.q_b_proj = linear(cfg.q_lora_rank, H * (N + R))
        self.kv_a_proj_with_mqa = linear(cfg.hidden_size, C + R)
        self.kv_a_layernorm = Norm(C)
        self.kv_b_proj = linear(C, H * (N + V))
        self.o_proj = linear(H * V, cfg.hidden_size)

    def forward(self, x):
        cfg, heads = self.cfg, (self.cfg.num_attention_heads, -1)
        N, R, C = cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.kv_lora_rank
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).unflatten(-1, heads)
        latent, k_r = self.kv_a_proj_with_mqa(x).split([C, R], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).unflatten(-1, heads)  # [B, T, H, N + V]
        q = torch.cat([q[..., :N], turn(q[..., N:], cfg.rope_theta)], dim=-1)
        k_r = turn(k_r.unsqueeze(-2), cfg.rope_theta).expand(*q.shape[:-1], R)  # one for all heads
        k = torch.cat([kv[..., :N], k_r], dim=-1)  # [B, T, H, N + R]
        scores = torch.einsum("bthn,bshn->bhts", q, k) / (N + R) ** 0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        shares = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.o_proj(torch.einsum("bhts,bshv->bthv", shares, kv[..., N:]).flatten(-2))


print("Norm and Attention are defined")

# %% [markdown]
# ### Dense network, router, experts
#
# From lesson 06, with the routing bias and the node limit of lesson 07: groups are ranked by the sum of their two best
# biased scores, and experts of the other groups cannot be chosen.


# %%
class MLP(nn.Module):
    """SwiGLU, for the dense layers and the shared expert."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj, self.up_proj = linear(width, inner), linear(width, inner)
        self.down_proj = linear(inner, width)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """x [M, D] -> chosen experts and their gate weights, [M, K] each."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.weight = nn.Parameter(torch.empty(cfg.n_routed_experts, cfg.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(cfg.n_routed_experts))

    def forward(self, x):
        cfg = self.cfg
        scores = (x @ self.weight.T).sigmoid()
        groups = (scores + self.e_score_correction_bias).unflatten(-1, (cfg.n_group, -1))
        rank = groups.topk(2, dim=-1).values.sum(-1) if cfg.n_group > 1 else groups.sum(-1)
        kept = torch.zeros_like(rank, dtype=torch.bool)
        kept = kept.scatter(-1, rank.topk(cfg.topk_group, dim=-1).indices, True)
        biased = groups.masked_fill(~kept.unsqueeze(-1), -math.inf).flatten(-2)
        ids = biased.topk(cfg.num_experts_per_tok, dim=-1).indices
        chosen = scores.gather(-1, ids)  # without the bias
        return ids, cfg.routed_scaling_factor * chosen / chosen.sum(-1, keepdim=True)


class Experts(nn.Module):
    """The stacked weights of all routed experts."""

    def __init__(self, cfg):
        super().__init__()
        E, D, inner = cfg.n_routed_experts, cfg.hidden_size, cfg.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(E, 2 * inner, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, inner))

    def forward(self, x, ids, weights):
        out = torch.zeros_like(x)
        for e, (gate_up, down) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
            token, slot = torch.where(ids == e)
            gate, up = (x[token] @ gate_up.T).chunk(2, dim=-1)
            y = (F.silu(gate) * up) @ down.T
            out = out.index_add(0, token, y * weights[token, slot, None])
        return out


class Mixture(nn.Module):
    """Routed and shared experts, x [B, T, D] -> [B, T, D]."""

    def __init__(self, cfg):
        super().__init__()
        self.gate, self.experts = Router(cfg), Experts(cfg)
        inner = cfg.n_shared_experts * cfg.moe_intermediate_size
        self.shared_experts = MLP(cfg.hidden_size, inner)

    def forward(self, x):
        tokens = x.flatten(0, 1)
        return self.experts(tokens, *self.gate(tokens)).view_as(x) + self.shared_experts(x)


print("MLP, Router, Experts and Mixture are defined")

# %% [markdown]
# ### The block
#
# A block has two sub-layers. Each reads a *normalised copy* of the stream and adds its answer to the stream itself:
#
# $$\mathbf x \leftarrow \mathbf x + \mathrm{Attention}(\mathrm{Norm}(\mathbf x)) \qquad
# \mathbf x \leftarrow \mathbf x + \mathrm{FFN}(\mathrm{Norm}(\mathbf x))$$
#
# This is called pre-norm. Eq. 12 of the report prints the same $\mathbf u_t$ as residual and as input of the experts,
# without a norm in between; Figure 2 and the released code have it there (difference D17), and so do we.


# %%
class Block(nn.Module):
    """x [B, T, D] -> [B, T, D]; the first layers have a dense network, the others experts."""

    def __init__(self, cfg, layer):
        super().__init__()
        self.input_layernorm = Norm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = Norm(cfg.hidden_size, cfg.rms_norm_eps)
        is_dense = layer < cfg.first_k_dense_replace
        self.mlp = MLP(cfg.hidden_size, cfg.intermediate_size) if is_dense else Mixture(cfg)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


for layer in (0, v3.first_k_dense_replace - 1, v3.first_k_dense_replace, v3.num_hidden_layers - 1):
    kind = "dense" if layer < v3.first_k_dense_replace else "experts"
    print(f"layer {layer:2} of V3: {kind}")

# %% [markdown]
# Why are the first layers dense? The report does not say. What follows from the sizes: a dense layer of V3 costs a
# token exactly as much as a layer with experts (lesson 06).
#
# ### The model
#
# A table of vectors in front, one for each token of the vocabulary; blocks; one last norm; and a matrix that turns a
# state into a score for every token that could come next. Table and matrix are two, not shared.


# %%
class Model(nn.Module):
    """tokens [B, T] -> logits [B, T, vocabulary]."""

    def __init__(self, cfg):
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(cfg.vocab_size, cfg.hidden_size),
                "layers": nn.ModuleList(Block(cfg, i) for i in range(cfg.num_hidden_layers)),
                "norm": Norm(cfg.hidden_size, cfg.rms_norm_eps),
            }
        )
        self.lm_head = linear(cfg.hidden_size, cfg.vocab_size)

    def states(self, tokens):
        """The stream after the embedding and after each block, [B, T, D] each."""
        stream = [self.model["embed_tokens"](tokens)]
        for block in self.model["layers"]:
            stream.append(block(stream[-1]))
        return stream

    def forward(self, tokens):
        return self.lm_head(self.model["norm"](self.states(tokens)[-1]))


def fresh(model, seed=0):
    """Random weights that show mistakes: norms away from 1, a routing bias away from 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.state_dict().items():
        if name.endswith("norm.weight"):
            weight.uniform_(0.8, 1.2, generator=generator)
        elif name.endswith("bias"):
            weight.uniform_(-0.5, 0.5, generator=generator)
        else:
            size = 1 if "embed" in name else weight.shape[-1] ** -0.5
            weight.normal_(0, size, generator=generator)
    return model


cfg = ModelConfig.preset(
    "nano", num_hidden_layers=4, qk_nope_head_dim=24, v_head_dim=20, vocab_size=512,
    num_nextn_predict_layers=0,
)  # fmt: skip
mine = fresh(Model(cfg))
tokens = torch.randint(
    cfg.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1)
)  # [B, T]
logits = mine(tokens)
print(f"tokens {list(tokens.shape)} -> logits {list(logits.shape)}, of size {logits.std():.2f}")

# %% [markdown]
# ## Reveal
#
# ### The count
#
# On the *meta* device tensors have shapes and no numbers, so our classes can be built at the real size. We sort the
# tensors by what they belong to.

# %%
with torch.device("meta"):
    real = Model(v3)
components = {
    "embed_tokens": "input embedding",
    "self_attn": "latent attention",
    ".mlp.experts.": "routed experts",
    "shared_experts": "shared experts",
    ".mlp.gate.weight": "router centroids",
    "correction_bias": "routing bias",
    ".mlp.": "dense FFN",
    "layernorm": "block norms",
    "model.norm": "final norm",
    "lm_head": "output head",
}
sizes = dict.fromkeys(components.values(), 0)
for name, weight in real.state_dict().items():
    part = next(part for key, part in components.items() if key in name)  # the first that fits
    sizes[part] += weight.numel()
for part, size in sizes.items():
    print(f"{part:18}{size:>18,}{100 * size / sum(sizes.values()):>9.2f} %")
print(f"{'all':18}{sum(sizes.values()):>18,}")

# %% [markdown]
# **671,026,419,200 parameters** in total, from classes that you could read on two screens. The report rounds to 671B
# (§4.2). The routing bias is counted, though no gradient trains it: the checkpoint holds it.

# %%
counted = count_parameters(v3)
print(
    "the package counts the same, part by part:",
    {p.name: p.total for p in counted.components} == sizes,
)
guess_1.reveal(
    100 * sizes["latent attention"] / sum(sizes.values()), "nearly all of V3 is routed experts"
)

# %% [markdown]
# ### Active: two rules
#
# Of the routed experts a token uses 8 of 256. Everything else works for every token, with one question left: the input
# embedding. A token reads one row of that table and multiplies nothing.

# %%
used = sizes["routed experts"] * v3.num_experts_per_tok // v3.n_routed_experts
active = sum(sizes.values()) - sizes["routed experts"] + used
print(f"active, with the input embedding:    {active:>15,}")
print(f"active, without the input embedding: {active - sizes['input embedding']:>15,}")
print(f"chosen by a router:                  {used:>15,}")
print()
print(f"not counted above, the MTP module of lesson 09: {counted.mtp_total:,} parameters")
copies = sizes["input embedding"] + sizes["output head"]
print(
    f"with it and its copies of embedding and head: {sum(sizes.values()) + counted.mtp_total + copies:,}"
)

# %% [markdown]
# The report says 37B active parameters and gives no rule. Without the input embedding it is 36.6 billion active
# parameters, which rounds to that; with it 37.6 billion active parameters, which does not (difference D20). The notes
# beside the released weights say 36.7 billion active parameters (README_WEIGHTS), which is neither. So name the rule
# whenever you quote such a number. The last line explains another one: the checkpoint is labelled as 685B parameters on
# Hugging Face.
#
# ### The stream

# %%
depths = (1, 4, 16, 64)
narrow = cfg.replace(
    hidden_size=64,
    num_hidden_layers=max(depths),
    first_k_dense_replace=max(depths),
    intermediate_size=160,
)
stream = fresh(Model(narrow)).states(tokens)
size = [stream[depth].pow(2).mean().sqrt().item() for depth in depths]
guess_2.reveal(
    size, "every block adds about as much as the one before: it grows, but slower and slower"
)

# %% [markdown]
# In a fresh model, what the sub-layers write points in nearly unrelated directions: squares add up, and the size grows
# like a square root. Nothing on the way brings it back to size. That is why there is a norm in front of every
# sub-layer, and one more in front of the head.

# %% [markdown]
# ## Check against the package
#
# ### Our classes against `DeepSeekV3`
#
# Same names, so the weights move over in one line. `strict` is the default: a name too many or too few is an error.

# %%
package = DeepSeekV3(cfg).eval()
package.load_state_dict(mine.state_dict())
their_logits = package(tokens).logits
difference = (their_logits - logits).abs().max()
print(f"{len(mine.state_dict())} tensors moved, all names fit")
print(f"max |diff| against DeepSeekV3: {difference:.1e} (tolerance 1e-04)")

# %% [markdown]
# ### Against an implementation by others
#
# Both of these are ours, so both could be wrong in the same way. `transformers` of Hugging Face has an implementation
# of DeepSeek-V3 that we had no part in. The package saves a folder in their layout; they load it. (The lessons do not
# need `transformers`. Without it this cell says so; the numbers shipped here come from a run with it.)


# %%
def load_with_transformers(folder):
    """The model in a folder, by the hands of others."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


has_transformers = importlib.util.find_spec("transformers") is not None
with tempfile.TemporaryDirectory() as folder:
    save_pretrained(package, f"{folder}/ours")
    if has_transformers:
        theirs = load_with_transformers(f"{folder}/ours")
        reference = theirs(input_ids=tokens, use_cache=False).logits
        gap = (reference - logits).abs().max().item()
        print(type(theirs).__name__, "of transformers loaded what the package had saved")
        print(f"max |diff| against transformers: {gap:.1e} (tolerance 1e-04)")

        theirs.save_pretrained(f"{folder}/theirs")  # and back
        back = load_pretrained(f"{folder}/theirs", dtype=torch.float32)
        difference = (back(tokens).logits - reference).abs().max()
        print(
            f"max |diff| against transformers, back from their folder: {difference:.1e} (tolerance 1e-04)"
        )
    else:
        gap = (their_logits - logits).abs().max().item()
        print(
            "transformers is not installed here: pip install transformers, and run this cell again"
        )

# %%
guess_3.reveal(
    "b", f"here the largest difference is {gap:.1e}, on logits of size {logits.std():.2f}"
)

# %% [markdown]
# Equal bits cannot be expected: sums are made in another order, and fp32 rounds. But a detail that differs costs far
# more than rounding. Here is how much three of them would:

# %%
for change, other in (
    ("factor on the gates forgotten", cfg.replace(routed_scaling_factor=1.0)),
    ("another base for RoPE", cfg.replace(rope_theta=9000.0)),
    ("one group of experts more allowed", cfg.replace(topk_group=cfg.topk_group + 1)),
):
    wrong = Model(other)
    wrong.load_state_dict(mine.state_dict())
    print(f"{change:36}{(wrong(tokens) - logits).abs().max():.1e}")

# %% [markdown]
# ### A trained model, from its folder, by hand
#
# Now real weights: the folder of `nano`, in the layout in which the released model comes. What is in it?

# %%
folder = latest_checkpoint(data_dir() / "checkpoints" / "nano")
on_disk = load_file(folder / "model.safetensors")
nano_cfg = load_pretrained(folder).cfg
print(f"{len(on_disk)} tensors; those of layer 1 that belong to the router and to experts 0 and 1:")
for name in sorted(on_disk):
    if name.startswith(
        (
            "model.layers.1.mlp.gate",
            "model.layers.1.mlp.experts.0.",
            "model.layers.1.mlp.experts.1.",
        )
    ):
        print(f"  {name:48}{list(on_disk[name].shape)!s:>12}  {str(on_disk[name].dtype)[6:]}")

# %% [markdown]
# **On disk every expert is a tensor of its own; in memory they are stacked**, gate rows above up rows. All other names
# are the same. Layer 3 and what follows is the MTP module of lesson 09, which we leave out.

# %%
state = {}
for name, weight in on_disk.items():
    layer = int(name.split(".")[2]) if name.startswith("model.layers.") else 0
    if layer < nano_cfg.num_hidden_layers and ".mlp.experts." not in name:
        state[name] = weight.float()
for layer in range(nano_cfg.first_k_dense_replace, nano_cfg.num_hidden_layers):
    experts = f"model.layers.{layer}.mlp.experts"
    each = range(nano_cfg.n_routed_experts)

    def stack(part, experts=experts, each=each):
        return torch.stack([on_disk[f"{experts}.{e}.{part}.weight"] for e in each]).float()

    state[f"{experts}.gate_up_proj"] = torch.cat([stack("gate_proj"), stack("up_proj")], dim=1)
    state[f"{experts}.down_proj"] = stack("down_proj")

nano = Model(nano_cfg)
print(nano.load_state_dict(state))

tokenizer = Tokenizer.load(folder)
text = (
    "def area(r):\n    return 3 * r * r\n\nThe area of a circle grows with its radius. 12 + 30 = 42"
)
ids = torch.tensor([tokenizer.encode(text)])
ours = nano(ids)
loaded = load_pretrained(folder, dtype=torch.float32)
difference = (loaded(ids, mtp=False).logits - ours).abs().max()
print(f"max |diff| against load_pretrained: {difference:.1e} (tolerance 1e-04)")
if has_transformers:
    difference = (
        (load_with_transformers(folder)(input_ids=ids, use_cache=False).logits - ours).abs().max()
    )
    print(f"max |diff| against transformers, trained weights: {difference:.1e} (tolerance 1e-04)")
print(f"(these logits reach from {ours.min():.0f} to {ours.max():.0f})")

# %% [markdown]
# And at the real size, names alone:

# %%
in_memory = real.state_dict()
names = disk_layout(in_memory, v3.replace(num_nextn_predict_layers=0))
print(f"V3 without MTP: {len(in_memory):,} tensors in memory, {len(names):,} on disk")
for name in (
    "model.layers.3.mlp.experts.255.down_proj.weight",
    "model.layers.60.self_attn.kv_b_proj.weight",
):
    print(f"  {name}: {list(names[name].shape)}")

# %% [markdown]
# So the answer to the question has three parts. The *count* agrees to the last digit. The *names and shapes* are those
# of the checkpoint. The *logits* agree with an implementation by others, on every part that is switched on here (YaRN
# waits for lesson 15, MTP for lesson 09). What this does not show is that the released weights would give sensible
# text: for that somebody must run them.

# %% [markdown]
# ## Play
#
# ### Read the stream on the way
#
# The head reads the last state. Nothing keeps you from showing it an earlier one: what would the model say after each
# layer, if that were the last? This is known as the logit lens.

# %%
prompt = "try:\n    x = 1\nexcept"  # yours

ids = torch.tensor([tokenizer.encode(prompt)])
for layer, state in enumerate(nano.states(ids)):
    said = nano.lm_head(nano.model["norm"](state))[0, -1].softmax(-1).topk(4)
    words = [
        f"{token_label(tokenizer.decode_bytes([token]))} ({share:.0%})"
        for share, token in zip(said.values.tolist(), said.indices.tolist(), strict=True)
    ]
    print(f"{'embedding' if layer == 0 else f'layer {layer - 1}':12}", "   ".join(words))

# %% [markdown]
# ### Design your own
#
# Where do parameters go when you change a size? Set some fields and compare with V3.

# %%
changes = dict(n_routed_experts=64, moe_intermediate_size=8192, num_experts_per_tok=2)  # yours

designs = {"V3": v3, "yours": v3.replace(**changes)}
figure, axes = plt.subplots(2, 1, figsize=(7.2, 3.4), sharex=True)
parts = {
    "routed experts": style.BLUE,
    "latent attention": style.VERMILLION,
    "all else": style.GREEN,
}
for ax, which in zip(axes, ("total", "active"), strict=True):
    for row, (name, config) in enumerate(designs.items()):
        counts = {c.name: getattr(c, which) for c in count_parameters(config).components}
        counts["all else"] = (
            sum(counts.values()) - counts["routed experts"] - counts["latent attention"]
        )
        left = 0.0
        for (part, colour), hatch in zip(parts.items(), ("", "//", ".."), strict=True):
            share = 100 * counts[part] / (sum(counts[p] for p in parts))
            ax.barh(
                row,
                share,
                left=left,
                color=style.tint(colour, 0.6),
                edgecolor="white",
                hatch=hatch,
                label=part,
            )
            left += share
        billions = sum(counts[p] for p in parts) / 1e9
        print(f"{which:7}{name:7}{billions:8.1f} billion:", end=" ")
        print(", ".join(f"{part} {100 * counts[part] / billions / 1e9:.1f} %" for part in parts))
    ax.set(yticks=range(len(designs)), yticklabels=list(designs), title=which)
    ax.invert_yaxis()
axes[1].set_xlabel("share of the parameters (%)")
axes[0].legend(*[entries[:3] for entries in axes[0].get_legend_handles_labels()], ncols=3, loc="lower right",
               bbox_to_anchor=(1, 1))  # fmt: skip
plt.show()

# %% [markdown]
# *In words: of the total, nearly the whole bar is routed experts; of the active part about a half, with attention and
# all else sharing the other half.*
#
# Four times fewer experts, four times as wide, and a quarter of the choices: the routed part of both sums stays as it
# is. (The shared expert is wider now.) What have you lost? Counts of parameters do not say, but this one does:

# %%
for name, config in designs.items():
    ways = math.comb(config.n_routed_experts, config.num_experts_per_tok)
    print(f"{name:6} a token can choose its experts in {ways:,} ways")

# %% [markdown]
# That is the reason for many small experts. (The node limit of lesson 07 leaves somewhat fewer ways.)

# %% [markdown]
# ## Exercises
#
# Write your code in the cell that opens with `# Exercise`, run it, then run the cell under it.


# %% tags=["exercise"]
# Exercise 8.1 (10 minutes): count one attention layer for any config, its two inner norms included.
def attention_parameters(config):
    """A ModelConfig (q_lora_rank may be None: then there is one matrix, q_proj) -> number of parameters."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("8.1").hint(), and in the end exercise("8.1").solution()
exercise("8.1").check(attention_parameters)


# %% tags=["exercise"]
# Exercise 8.2 (10 minutes): the stream, and what each sub-layer writes into it.
def run_stack(x, layers):
    """x [T, D]; layers: a list of (norm_1, attention, norm_2, ffn), functions [T, D] -> [T, D].

    Gives the stream at the end [T, D] and what was added on the way, in order, [2L, T, D].
    """
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("8.2").hint(), and in the end exercise("8.2").solution()
exercise("8.2").check(run_stack)


# %% tags=["exercise"]
# Exercise 8.3 (15 minutes): active parameters of any checkpoint, by the names of its tensors.
def active_parameters(shapes, config):
    """shapes: name on disk -> shape (a tuple). MTP modules and the input embedding are not counted.

    The numbers of the layers of MTP modules begin with config.num_hidden_layers.
    """
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("8.3").hint(), and in the end exercise("8.3").solution()
exercise("8.3").check(active_parameters)


# %% tags=["exercise"]
# Exercise 8.4 (5 minutes): from memory to disk, the other way than above, for the experts of one layer.
def split_experts(gate_up, down, layer):
    """gate_up [E, 2F, D], down [E, D, F] -> a dict of name on disk -> tensor."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("8.4").hint(), and in the end exercise("8.4").solution()
exercise("8.4").check(split_experts)


# %% tags=["exercise"]
# Exercise 8.5 (10 minutes): two models disagree. In which layer do they part?
def first_difference(ours, theirs, x, tolerance):
    """ours, theirs: lists of functions, each model runs its own from x on -> number of the first layer behind which
    the states differ by more than `tolerance` somewhere, counted from 0; -1 if there is none."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("8.5").hint(), and in the end exercise("8.5").solution()
exercise("8.5").check(first_difference)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 8.A: the residual from the normalised input

# %%
exhibit("8.A").show()

# %% tags=["predict"]
exhibit("8.A").predict()

# %%
exhibit("8.A").run()

# %%
exhibit("8.A").diagnose()

# %% [markdown]
# ### Exhibit 8.B: a word inside a word

# %%
exhibit("8.B").show()

# %% tags=["predict"]
exhibit("8.B").predict()

# %%
exhibit("8.B").run()

# %%
exhibit("8.B").diagnose()

# %% [markdown]
# ## What the report says
#
# * **Figure 2** is the block, with both norms; **Eq. 12** prints the second half without its norm (difference D17).
# * **§4.2** has the sizes: 61 layers of width 7168, the first 3 of them with dense FFNs, the others MoE layers with 1
#   shared and 256 routed experts, and 128 heads. It gives 671B total and 37B activated parameters, without a table.
# * **Not in the report**: the inner width 18432 of a dense FFN (from the released config), that embedding and head are
#   two matrices (from the released weights), and how active parameters are counted.
# * **§4.1** speaks of a vocabulary of 128K tokens; the embedding has 129,280 rows (difference D19).
# * **§4.2** draws all initial weights with a standard deviation of 0.006. Our small models use one over the square root
#   of the width instead, so that narrow layers are not too quiet (difference D18).

# %% [markdown]
# ## Recap
#
# * A block reads through norms and adds to the stream; the stream itself is never normalised on the way.
# * The first layers are dense, the others have experts; one norm and one matrix come at the end.
# * 671,026,419,200 parameters in total: 97.45 % routed experts, 1.7 % attention. Active: name your rule.
# * Names on disk are names in memory, apart from the experts. With equal names, implementations can be compared.
# * Equal count, equal names, logits equal to a few millionths: that is what "the same model" means.

# %%
draw_idea_graph(highlight=["transformer_block", "mla", "deepseekmoe", "cost"])

# %% [markdown]
# *In words: the idea graph of the report. The nodes of the Transformer block, of attention, of the experts and of the
# parameter count are filled: you have built them.*
#
# **Next:** lesson 09, multi-token prediction. The folder of `nano` had one more layer than you loaded. What is it for,
# when the model can do without it?
