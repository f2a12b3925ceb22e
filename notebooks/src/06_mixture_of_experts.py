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
# # 06 Mixture of experts
#
# *About 60 minutes. You need [01 Attention](01_attention.ipynb). This lesson builds the half of DeepSeek-V3 in which
# nearly all of its parameters are.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import torch
    import torch.nn.functional as F
    from torch.utils._python_dispatch import TorchDispatchMode

    from dsv3_mini import ModelConfig, load_pretrained
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.course.prediction import Sketch
    from dsv3_mini.model.count import count_parameters
    from dsv3_mini.model.experts import HAS_GROUPED_MM
    from dsv3_mini.model.moe import MLP, MoE
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train.checkpoint import latest_checkpoint
    from dsv3_mini.train.tokenizer import Tokenizer
    from dsv3_mini.viz import style
    from dsv3_mini.viz.idea_graph import draw_idea_graph
    from dsv3_mini.viz.routing_explorer import RoutingExplorer
except ModuleNotFoundError as missing:
    raise ImportError(
        f"this kernel has no module {missing.name!r}: it is not the kernel of the course. "
        "Start the lessons with `make lab`, and choose Kernel > Change Kernel > Python 3 (ipykernel)."
    ) from None
style.use()
torch.manual_seed(0)
print("ready")

# %% [markdown]
# ## The question
#
# A block of a transformer has two halves. Attention lets tokens look at each other. Behind it stands a feed-forward
# network (FFN), which works on each token by itself. In the first layers of DeepSeek-V3 that network is dense; in all
# others it is a mixture of experts. Here are the weights of both kinds, and of these the ones that a single token is
# multiplied with:

# %%
v3 = ModelConfig.preset("v3-671b")
dense = 3 * v3.hidden_size * v3.intermediate_size
expert = 3 * v3.hidden_size * v3.moe_intermediate_size
owned = (v3.n_routed_experts + v3.n_shared_experts) * expert
used = (v3.num_experts_per_tok + v3.n_shared_experts) * expert
print(f"{'':20}{'weights':>16}{'used by a token':>18}")
print(f"{'dense FFN':20}{dense:>16,}{dense:>18,}")
print(f"{'mixture of experts':20}{owned:>16,}{used:>18,}")
print(f"the mixture owns {owned / dense:.1f} times as many")

# %% [markdown]
# **How can a layer own nearly 29 times the weights and do exactly as much work for a token?**
#
# Before you read on: what would you have to give up in the dense network to get there? And who decides which weights a
# token meets?

# %% [markdown]
# ## What you will be able to do
#
# * Write the MoE layer of §2.1.2 from its equations: scores, choice, gates, routed and shared experts.
# * Run the experts in three ways that give the same numbers, and say what each is good for.
# * Tell parameters that exist from parameters that work, and from weights that must be read.
# * Read where a trained model sends the tokens of your own sentence.
# * Recognise two bugs that pass a test on a small config.

# %% [markdown]
# ## Predict

# %% tags=["predict"]
guess_1 = predict(
    "6.p1",
    "You cut a trained dense SwiGLU network lengthwise: each of four small networks gets a quarter of its inner "
    "channels. All four run on every token and their outputs are added. How far is the sum from the original?",
    choices={
        "a": "it is the same, up to rounding",
        "b": "close, but not the same: the nonlinearity sits between the two halves of the network",
        "c": "far off: the four parts were never trained to work alone",
    },
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "6.p2",
    "Take all parameters of V3 that work for one token. What percentage of them was chosen by a router? (The others "
    "work for every token, whatever it is.)",
    unit="%",
)
guess_2

# %% tags=["predict"]
guess_3 = predict(
    "6.p3",
    "One layer has 256 experts, and a token uses 8. Now several tokens come at once, each with its own choice. Sketch "
    "how many different experts are needed, for 1 to 256 tokens.",
    sketch=Sketch((1, 4, 16, 64, 256), 0, 256, "tokens at once", "experts needed"),
)
guess_3

# %% [markdown]
# ## Build it
#
# ### A network for each token
#
# Shapes: `N` tokens (batch and time in one), `D` width of a token, `F` inner width of a network, `E` experts, `K` of
# them per token. In the report $N_r$ is the number of routed experts, $K_r$ is `K`, and $\mathbf u_t$ is a token's row.
#
# The network is a **SwiGLU**: two projections up, one of which opens and closes the channels of the other, and one
# projection down.

# %%
N, D, F_dense = 12, 32, 64
x = torch.randn(N, D)


def matrix(*shape):
    """Random weights that keep the size of what goes through them."""
    return torch.randn(*shape) / shape[-1] ** 0.5


def swiglu(x, gate, up, down):
    """x [N, D], gate and up [F, D], down [D, F] -> [N, D]."""
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


gate, up, down = matrix(F_dense, D), matrix(F_dense, D), matrix(D, F_dense)
whole = swiglu(x, gate, up, down)
print(f"x {list(x.shape)} -> inner {[N, F_dense]} -> {list(whole.shape)}")
print(f"{gate.numel() + up.numel() + down.numel():,} weights: three matrices")

# %% [markdown]
# ### Cut it into slices
#
# The inner channels never meet: each is opened by its own gate, and at the end all are added up by `down`. So the
# network can be cut lengthwise. This cell makes four small networks of the dense one; the section Reveal compares.

# %%
slices = [
    (gate[part], up[part], down[:, part]) for part in torch.arange(F_dense).chunk(4)
]  # four networks of inner width F_dense / 4
parts = [swiglu(x, *weights) for weights in slices]
print(
    f"{len(parts)} outputs of shape {list(parts[0].shape)}, from networks of inner width", end=" "
)
print(len(slices[0][0]))

# %% [markdown]
# A dense FFN is a crowd of small networks in which everybody always speaks. Now two changes: have many more of them,
# and let each token hear only a few. That is a mixture of experts. DeepSeek's version makes the experts *small and
# many* instead of large and few: a choice of several small ones can be made in far more ways.

# %%
E, K, F_expert = 16, 4, 16
gate_up = matrix(E, 2 * F_expert, D)  # all experts in one stack: gate rows above up rows
down = matrix(E, D, F_expert)
centroids = matrix(E, D)  # e_i, one for each expert
w_gate, w_up = gate_up.chunk(2, dim=1)  # [E, F, D] each
print(f"{E} experts of inner width {F_expert}, {K} of them for each token")

# %% [markdown]
# ### Who fits: the affinity
#
# Each expert has a vector of its own, the centroid $\mathbf e_i$. How well a token fits is a dot product, and a sigmoid
# turns it into a number between nothing and one (Eq. 15):
#
# $$s_{i,t} = \mathrm{Sigmoid}(\mathbf u_t^\top \mathbf e_i)$$
#
# A softmax would make the experts compete: when one score rises, all others fall. Is that so with a sigmoid?

# %%
scores = (x @ centroids.T).sigmoid()  # [N, E]
print(f"scores {list(scores.shape)}")

louder = centroids.clone()
louder[0] += x[0] / D**0.5  # expert 0 now fits token 0 better
after = x @ louder.T
moved = (after.sigmoid() - scores)[0].abs()
competing = (after.softmax(-1) - (x @ centroids.T).softmax(-1))[0].abs()
print(f"sigmoid: scores of token 0 that moved: {int((moved > 1e-6).sum())} of {E}")
print(f"softmax: scores of token 0 that moved: {int((competing > 1e-6).sum())} of {E}")

# %% [markdown]
# With a sigmoid each expert is judged by itself. Competition comes in only with the choice, and with what follows it.
#
# ### The choice, and the gates
#
# The `K` experts with the highest scores are chosen. Their gate weights are their scores, divided by the sum **over the
# chosen ones** (Eq. 13 and 14). The released code then multiplies by a factor that the report does not mention,
# `routed_scaling_factor`, and our presets do, too.

# %%
scaling = v3.routed_scaling_factor
chosen, ids = scores.topk(K, dim=-1)  # [N, K] each
weights = scaling * chosen / chosen.sum(-1, keepdim=True)  # [N, K]
print(f"token 0 goes to experts {ids[0].tolist()}")
print(f"scores  {[round(s, 2) for s in chosen[0].tolist()]}")
print(f"weights {[round(w, 2) for w in weights[0].tolist()]}, their sum {weights[0].sum():.2f}")

# %% [markdown]
# The sum is the same for every token: how loud the routed experts are together does not depend on how well they fit.
# That is a choice. Gate weights carry the gradient that teaches the centroids; `topk` itself has none.
#
# Two things that V3 adds to the choice, a bias for balance (Eq. 16) and a limit on the machines a token may visit, are
# the subject of lesson 07.
#
# ### One expert after the other
#
# The layer adds up the chosen experts, each with its gate weight. And there is one expert that nobody has to choose:
# the **shared** one. Every token passes it, without gate and without factor, so that the routed ones need not each
# learn again what all tokens need (Eq. 12; the term $\mathbf u_t$ alone is the residual, which the block adds in lesson
# 08):
#
# $$\sum_{i=1}^{N_s} \mathrm{FFN}^{(s)}_i(\mathbf u_t) + \sum_{i=1}^{N_r} g_{i,t}\,\mathrm{FFN}^{(r)}_i(\mathbf u_t)$$

# %%
shared = (matrix(F_expert, D), matrix(F_expert, D), matrix(D, F_expert))


def routed_loop(x, ids, weights):
    """x [N, D], ids and weights [N, K] -> [N, D]: expert by expert, pick its tokens."""
    out = torch.zeros_like(x)
    for e in range(E):
        token, slot = torch.where(ids == e)  # who chose expert e, and in which slot
        y = swiglu(x[token], w_gate[e], w_up[e], down[e])  # [n_e, D]
        out = out.index_add(0, token, y * weights[token, slot, None])
    return out


routed = routed_loop(x, ids, weights)
y = routed + swiglu(x, *shared)
print(f"x {list(x.shape)} -> y {list(y.shape)}")

# %% [markdown]
# Is it the sum? Take one token and go by the equation, expert by expert, with every gate written out:

# %%
t = 5
by_hand = swiglu(x[t : t + 1], *shared)[0]
for e in range(E):
    g = sum(weights[t, slot] for slot in range(K) if ids[t, slot] == e)  # 0 for most experts
    by_hand = by_hand + g * swiglu(x[t : t + 1], w_gate[e], w_up[e], down[e])[0]
print(
    f"max |diff| against Eq. 12 for token {t}: {(by_hand - y[t]).abs().max():.1e} (tolerance 1e-05)"
)

# %% [markdown]
# ### Sorted: every expert reads one slice
#
# The loop searches all choices once for every expert, and gathers tokens from here and there. Better: bring the
# assignments into the order of the experts *once*. An assignment is one pair of token and chosen expert; there are
# `M = N * K`.

# %%
flat = ids.flatten()  # [M]: assignment m belongs to token m // K
order = flat.argsort(stable=True)  # [M]: assignments by expert
counts = torch.bincount(flat, minlength=E)  # [E]
ends = counts.cumsum(0)  # [E]: where the slice of each expert ends
print("assignments by expert:", flat[order].tolist())
print("tokens per expert:    ", counts.tolist())
print("slices end at:        ", ends.tolist())

# %% [markdown]
# Copy every token to the rows of its assignments (*dispatch*), let each expert run over its slice, and bring the
# results back (*combine*). The way back is the inverse of the permutation. In token order the `K` results of a token
# stand next to each other and can be added.


# %%
def routed_sorted(x, ids, weights):
    """The same as `routed_loop`: sort once, then one slice for each expert."""
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=E)
    rows = x[order // K]  # [N, D] -> [M, D], dispatch
    pieces, start = [], 0
    for e, count in enumerate(counts.tolist()):
        pieces.append(swiglu(rows[start : start + count], w_gate[e], w_up[e], down[e]))
        start += count
    results = torch.cat(pieces) * weights.flatten()[order, None]  # [M, D]
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))  # where assignment m stands
    return results[inverse].unflatten(0, (-1, K)).sum(1)  # [M, D] -> [N, K, D] -> [N, D]


difference = (routed_sorted(x, ids, weights) - routed).abs().max()
print(f"max |diff| against the loop: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# No token is dropped and nothing is padded, however uneven the load is. The report keeps all tokens, too, in training
# and in use (§2.1.2).
#
# ### Grouped: all slices in one product
#
# What is left is a Python loop over matrix products of different heights. `grouped_mm` does all of them in one call; it
# takes the stacked weights and the ends of the slices.


# %%
def routed_grouped(x, ids, weights):
    """The same in two grouped matrix products."""
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=E).cumsum(0).to(torch.int32)
    inner = F.grouped_mm(x[order // K], gate_up.transpose(1, 2), offs=ends)  # [M, 2F]
    opened, channels = inner.chunk(2, dim=-1)
    results = F.grouped_mm(F.silu(opened) * channels, down.transpose(1, 2), offs=ends)  # [M, D]
    results = results * weights.flatten()[order, None]
    inverse = order.argsort()  # the inverse of a permutation sorts it
    return results[inverse].unflatten(0, (-1, K)).sum(1)


if HAS_GROUPED_MM:
    difference = (routed_grouped(x, ids, weights) - routed).abs().max()
    print(f"max |diff| against the loop: {difference:.1e} (tolerance 1e-05)")
else:
    print("this version of torch has no grouped_mm; the package then takes the sorted path")

# %% [markdown]
# ### A trap in the backward pass
#
# `gate_up[e]` inside a loop looks innocent. What is its gradient? It has the shape of *all* experts, zeros but for one,
# and the loop makes one of them for every expert. We count the numbers that the backward pass writes, for the same loop
# over `stack[e]` and over `stack.unbind(0)`:


# %%
class NumbersWritten(TorchDispatchMode):
    """Counts the elements of every new tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not operation.is_view:
            self.count += result.numel()
        return result


def written_backward(experts, take):
    """Numbers that the backward pass writes, measured in sizes of the whole stack."""
    stack = torch.randn(experts, D, D, requires_grad=True)
    out = sum((x[:1] @ weight).sum() for weight in take(stack))
    with NumbersWritten() as written:
        out.backward()
    return written.count / stack.numel()


print("experts   stack[e]   unbind      (sizes of the whole stack)")
for experts in (8, 32, 128):
    indexed = written_backward(experts, lambda stack: [stack[e] for e in range(len(stack))])
    unbound = written_backward(experts, lambda stack: stack.unbind(0))
    print(f"{experts:7}{indexed:11.1f}{unbound:9.1f}")

# %% [markdown]
# With an index the cost grows with the *square* of the number of experts, though the forward pass is the same. `unbind`
# once in front of the loop writes the gradient once. The loop of the package does that.

# %% [markdown]
# ## Reveal

# %%
difference = (sum(parts) - whole).abs().max()
print(f"max |diff| against the dense network: {difference:.1e} (tolerance 1e-05)")
guess_1.reveal("a", f"the four slices together differ from the whole by {difference:.1e}")

# %% [markdown]
# The nonlinearity works on one channel at a time, so a cut between channels changes nothing. This is why the same
# amount of work can be bought as one wide network or as several narrow ones. In V3 a dense FFN is exactly as wide as
# the 9 experts that a token passes (§4.2 and the released config), hence the two equal numbers at the top.

# %%
count = count_parameters(v3)
picked = count["routed experts"].active
share = 100 * picked / count.active_without_embedding
print(f"parameters in all:                     {count.total:>15,}")
print(f"they work for a token:                 {count.active_without_embedding:>15,}")
print(f"of these, experts that a router chose: {picked:>15,}")
guess_2.reveal(
    share, "the other half works for every token: attention, shared expert, head, router"
)

# %% [markdown]
# Of all parameters, 97 % are routed experts. Of those at work, little more than half are. That a token gets "the most
# relevant 37 billion" parameters is therefore only half true: about 16 billion parameters are always on. (The input
# embedding is left out here, as a look-up multiplies nothing; lesson 08 counts to the last digit and by both rules.)

# %%
generator = torch.Generator().manual_seed(1)
tokens_at_once = (1, 4, 16, 64, 256)
random_scores = torch.randn(256, 64, generator=generator) @ torch.randn(
    64, v3.n_routed_experts, generator=generator
)
random_ids = random_scores.topk(v3.num_experts_per_tok, dim=-1).indices  # [256, 8]
needed = [len(random_ids[:n].unique()) for n in tokens_at_once]
guess_3.reveal(
    needed, f"one token needs {needed[0]} experts, {tokens_at_once[3]} of them {needed[3]}"
)

# %% [markdown]
# "Active" is a count for *one* token. Tokens that come together choose differently, and soon every expert is needed by
# somebody. So a mixture saves multiplications for every token, but it must have all of its weights at hand, and a large
# batch reads nearly all of them. (Random tokens and centroids here; a trained model is less even.)

# %% [markdown]
# ## Check against the package
#
# `MoE` of the package has the names of the checkpoint: `gate.weight` holds the centroids, `experts.gate_up_proj` and
# `experts.down_proj` are the stacks, `shared_experts` is a plain SwiGLU. We load our weights. One group of experts
# means no limit on machines.

# %%
cfg = ModelConfig.preset(
    "nano", hidden_size=D, n_routed_experts=E, num_experts_per_tok=K, n_group=1, topk_group=1,
    moe_intermediate_size=F_expert, routed_scaling_factor=scaling,
)  # fmt: skip
package = MoE(cfg)
package.load_state_dict(
    {
        "gate.weight": centroids,
        "gate.e_score_correction_bias": torch.zeros(E),  # lesson 07
        "experts.gate_up_proj": gate_up,
        "experts.down_proj": down,
        "shared_experts.gate_proj.weight": shared[0],
        "shared_experts.up_proj.weight": shared[1],
        "shared_experts.down_proj.weight": shared[2],
    }
)
paths = ["loop", "sorted", "tokenwise"] + ["grouped"] * HAS_GROUPED_MM
with torch.no_grad():
    for path in paths:
        package.experts.force_path(path)
        theirs, routing = package(x.view(2, N // 2, D))  # [B, T, D]
        difference = (theirs.flatten(0, 1) - y).abs().max()
        print(f"max |diff| against MoE, path {path}: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# The layer hands back its **routing**: who was chosen, with which weight, all scores, and the tokens of each expert.
# The order of the choices within a token says nothing, so we compare tables with a column for each expert.

# %%
ours = torch.zeros(N, E).scatter(-1, ids, weights)
theirs = torch.zeros(N, E).scatter(-1, routing.ids, routing.weights.detach())
print(
    f"max |diff| against the package's gates: {(ours - theirs).abs().max():.1e} (tolerance 1e-05)"
)
print("tokens per expert as ours:", torch.equal(routing.counts, counts))

mlp = MLP(D, F_expert)
mlp.load_state_dict(
    {f"{name}_proj.weight": w for name, w in zip(("gate", "up", "down"), shared, strict=True)}
)
difference = (mlp(x).detach() - swiglu(x, *shared)).abs().max()
print(f"max |diff| against MLP, the SwiGLU of the package: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# ## Play
#
# Where does a trained model send *your* tokens? `nano` is the small model that ships with the course: two MoE layers,
# and a router as above, with the node limit of lesson 07. In Lab, type into the picture, and lock a token with a click
# or the arrow keys to follow it through the layers; elsewhere change the sentence and run the cell.

# %%
folder = latest_checkpoint(data_dir() / "checkpoints" / "nano")
model, tokenizer = load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)

sentence = "def double(x):\n    return 2 * x  # double(21) is 42, and double(4) is 8"  # yours

explorer = RoutingExplorer(model, tokenizer, text=sentence, layer=2)
explorer

# %% [markdown]
# *In words: one row a token, one column an expert, darker for a larger gate weight; each token has four experts. A ring
# marks the expert that would have been next, a cross one that the limit on groups (lesson 07) shut out. Every token
# passes the hatched column, the shared expert. The bars count the tokens of each expert, the dashed line is an even
# share.*
#
# The explorer shows the **routing record** that a model gives on request. Here it is by hand. Does the router look at
# the token, or at what it means in its place? Take tokens that occur twice in the text, and compare how many experts
# the two have in common with what two different tokens have.


# %%
def in_common(ids, pairs):
    """Mean number of experts that the two tokens of a pair both use."""
    return sum(len(set(ids[a].tolist()) & set(ids[b].tolist())) for a, b in pairs) / len(pairs)


tokens = tokenizer.encode(explorer.text)  # what you typed, if you typed
with torch.no_grad():
    records = model(torch.tensor([tokens]), mtp=False, record_routing=True).routing
places = range(len(tokens))
same = [(a, b) for a in places for b in places if a < b and tokens[a] == tokens[b]]
other = [(a, b) for a in places for b in places if a < b and tokens[a] != tokens[b]]
if same and other:
    print(f"experts in common, of {model.cfg.num_experts_per_tok}:")
    for record in records:  # one for each MoE layer: ids, weights [1, T, K], scores [1, T, E]
        twice, apart = in_common(record.ids[0], same), in_common(record.ids[0], other)
        print(f"layer {record.layer}: the same token twice {twice:.1f}, others {apart:.1f}")
else:
    print("no token occurs twice: try a longer text")

# %% [markdown]
# The same token has much in common with itself, not everything: the router sees a vector in which attention has already
# mixed what stood before. So an expert is not "one for mathematics". It is one for certain vectors, and lesson 07 asks
# how much of that is topic and how much is spelling.

# %% [markdown]
# ## Exercises
#
# Write your code in the cell that opens with `# Exercise`, run it, then run the cell under it.


# %% tags=["exercise"]
# Exercise 6.1 (5 minutes): count one MoE layer, for any config.
def moe_parameters(config):
    """A ModelConfig -> (all parameters of one MoE layer, those that work for a token).

    The layer: routed experts, shared experts, and the router with a centroid and a bias for each routed expert.
    """
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("6.1").hint(), and in the end exercise("6.1").solution()
exercise("6.1").check(moe_parameters)


# %% tags=["exercise"]
# Exercise 6.2 (10 minutes): gates with a bias. It is added to the scores for the choice, and for nothing else (Eq. 16).
def gates(scores, bias, top_k, scaling):
    """scores [N, E], bias [E] -> gates [N, E]: 0 where an expert is not chosen; a row adds up to `scaling`."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("6.2").hint(), and in the end exercise("6.2").solution()
exercise("6.2").check(gates)

# %% [markdown]
# Some hardware wants slices whose height is a multiple of a fixed number. Then every slice is filled up with idle rows,
# and no longer starts where the one before it ends.


# %% tags=["exercise"]
# Exercise 6.3 (15 minutes): where every assignment stands when slices are filled up.
def layout(ids, experts, multiple):
    """ids [N, K] -> row [M], sizes [experts].

    row[m]: the row of assignment m (token m // K), by expert, within an expert in the order of m.
    sizes: rows of each expert, filled up to a multiple of `multiple`; an expert without tokens has 0 rows.
    """
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("6.3").hint(), and in the end exercise("6.3").solution()
exercise("6.3").check(layout)


# %% tags=["exercise"]
# Exercise 6.4 (5 minutes): add the results up. A token may have several rows, one, or none.
def combine(rows, token, weights, tokens):
    """rows [M, D], in any order; token [M], whose row it is; weights [M] -> sums [tokens, D]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("6.4").hint(), and in the end exercise("6.4").solution()
exercise("6.4").check(combine)


# %% tags=["exercise"]
# Exercise 6.5 (10 minutes): the whole layer. No bias here, and no residual: the block adds that.
def moe(x, scores, top_k, scaling, experts, shared):
    """x [N, D], scores [N, E], experts: a list of E functions [n, D] -> [n, D], shared: one more -> [N, D]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("6.5").hint(), and in the end exercise("6.5").solution()
exercise("6.5").check(moe)

# %% [markdown]
# In V3 the experts of a layer are spread over many GPUs. Each computes its part for the tokens that it is sent; the
# parts are added up.


# %% tags=["exercise"]
# Exercise 6.6 (10 minutes): the part of one machine. It holds experts number first, first + 1, ... of the whole model.
def local_part(x, ids, weights, first, experts):
    """x [N, D], ids and weights [N, K] (numbers of the whole model), experts: this machine's functions -> [N, D]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("6.6").hint(), and in the end exercise("6.6").solution()
exercise("6.6").check(local_part)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 6.A: the factor on the shared expert

# %%
exhibit("6.A").show()

# %% tags=["predict"]
exhibit("6.A").predict()

# %%
exhibit("6.A").run()

# %%
exhibit("6.A").diagnose()

# %% [markdown]
# ### Exhibit 6.B: every other token to expert 0

# %%
exhibit("6.B").show()

# %% tags=["predict"]
exhibit("6.B").predict()

# %%
exhibit("6.B").run()

# %%
exhibit("6.B").diagnose()

# %% [markdown]
# ## What the report says
#
# * **§2.1.2, Eq. 12** is the layer, with the residual; **Eq. 13 to 15** are gates, choice and affinity; **Eq. 16**
#   replaces Eq. 14 when the bias is in play. It says itself that the sigmoid is new since DeepSeek-V2.
# * **§4.2**: all FFNs except those of the first 3 layers are replaced by MoE layers; each has 1 shared and 256 routed
#   experts of inner width 2048, and 8 of the routed ones work for a token. In all, 671B parameters, 37B of them active.
# * **Eq. 13 ends there.** The released code multiplies the normalised gates by a factor of 2.5 (difference D1).
# * **§2.1.2** says that no token is dropped, in training or in inference. It does not say how experts are run: loop,
#   sort and grouped product are engineering, and equal.
# * Small experts and shared ones come from DeepSeekMoE, which the report cites. It has no experiment of its own about
#   their size.

# %% [markdown]
# ## Recap
#
# * A dense SwiGLU network is the sum of its slices. A mixture owns many slices and lets a token use a few.
# * A sigmoid scores each expert by itself; the best are chosen; their scores are divided by their sum. The shared
#   expert has no gate.
# * Sorted by expert, assignments form slices: no padding, no dropped token. The inverse permutation brings them back.
# * Active, total, and needed by a batch are three different numbers.

# %%
draw_idea_graph(highlight=["deepseekmoe", "sigmoid_gate"])

# %% [markdown]
# *In words: the idea graph of the report. The nodes of the mixture of experts and of its sigmoid gate are filled: you
# have built them.*
#
# **Next:** lesson 07, balance. Nothing in this lesson keeps the router from sending everything to the same few experts.
# Count the load of your sentence above: what would happen in training to an expert that is never chosen?
