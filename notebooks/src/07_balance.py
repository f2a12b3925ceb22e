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
# # 07 Balance
#
# *About 60 minutes. You need [06 Mixture of experts](06_mixture_of_experts.ipynb). This lesson keeps a router from
# sending everything to the same few experts.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import tempfile
    from pathlib import Path

    import torch

    from dsv3_mini import ModelConfig, load_pretrained
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.course.prediction import Sketch
    from dsv3_mini.model.balance import (
        batch_balance_loss,
        max_violation,
        sequence_balance_loss,
        update_routing_bias,
    )
    from dsv3_mini.model.router import Router
    from dsv3_mini.model.transformer import DeepSeekV3
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train.balance_lab import curve, load_lab
    from dsv3_mini.train.balance_ways import LOSS_ALPHA, WAYS
    from dsv3_mini.train.checkpoint import latest_checkpoint
    from dsv3_mini.train.corpus import embedded_corpus
    from dsv3_mini.train.evaluate import select_documents
    from dsv3_mini.train.routing_log import RoutingRecorder
    from dsv3_mini.train.specialisation import (
        chance_effect,
        effect,
        load_by_domain,
        route_documents,
        shared_part,
    )
    from dsv3_mini.train.tokenizer import Tokenizer
    from dsv3_mini.viz import style
    from dsv3_mini.viz.gate_stepper import GateStepper
    from dsv3_mini.viz.idea_graph import draw_idea_graph
    from dsv3_mini.viz.picture import Picture
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
# In lesson 06 the router chose the experts that fit a token best, and nothing else. Here is such a router, which nobody
# has trained yet, with random tokens. The tokens have something in common, as the states inside a network do. How busy
# does it make its experts?

# %%
N, D, E, K = 1024, 32, 16, 4
centroids = torch.randn(E, D) / D**0.5
common = 0.7 * torch.randn(D)  # what all tokens share


def tokens():
    """N new tokens [N, D]."""
    return torch.randn(N, D) + common


x = tokens()
scores = (x @ centroids.T).sigmoid()  # [N, E]
ids = scores.topk(K, dim=-1).indices  # [N, K]
load = torch.bincount(ids.flatten(), minlength=E)  # [E]
print("tokens of each expert, busiest first:", load.sort(descending=True).values.tolist())
print(f"an even share would be {N * K // E} tokens")

# %% [markdown]
# Nobody wanted this. Some centroids happen to point where all tokens point. If each expert has a machine of its own,
# all machines wait for the busiest, and the weights of the idlest are hardly used. Now training starts.
#
# **Does training even this out, or does it make it worse? And how would you stop it without telling a token to take an
# expert that does not fit?**

# %% [markdown]
# ## What you will be able to do
#
# * Measure imbalance by the report's kind of number, MaxVio.
# * Say why a router left alone tends to collapse, and watch it in a small model.
# * Balance it with a bias that no gradient reaches, and say what that bias does not touch.
# * Write the limit on nodes and the sequence-wise loss from the equations.
# * Judge whether an expert knows a topic or a spelling.

# %% [markdown]
# ## Predict

# %% tags=["predict"]
guess_1 = predict(
    "7.p1",
    "A layer has 16 experts and each token takes 4. MaxVio is what the busiest expert has above the mean, divided by "
    "the mean. In the worst case all tokens take the same four. What is MaxVio then?",
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "7.p2",
    "You add 1 to the routing bias of every expert of a layer. What happens to the tokens of that layer?",
    choices={
        "a": "other experts are chosen, and the gate weights change",
        "b": "the same experts are chosen, with larger gate weights",
        "c": "nothing at all",
    },
)
guess_2

# %% tags=["predict"]
guess_3 = predict(
    "7.p3",
    "After each step, the bias of every expert above the mean goes down by 0.01, and up for those below. The router "
    "itself stays as it is. Sketch MaxVio over the steps.",
    sketch=Sketch((0, 25, 50, 100, 200), 0, 3, "step", "MaxVio"),
)
guess_3

# %% [markdown]
# ## Build it
#
# ### One number for the imbalance
#
# The layer is as slow as its busiest expert. So the number to watch is by how much that one passes the mean, in shares
# of the mean: $\mathrm{MaxVio} = (\max_i c_i - \bar c)\,/\,\bar c$, with $c_i$ the tokens of expert $i$. Perfect
# balance gives nothing; twice the mean gives one.


# %%
def max_vio(load):
    """load [E], tokens of each expert -> one number."""
    mean = load.float().mean()
    return ((load.max() - mean) / mean).item()


print(f"busiest {int(load.max())}, mean {load.float().mean():.0f}: MaxVio {max_vio(load):.2f}")

# %% [markdown]
# ### Why it gets worse by itself
#
# Which experts learn from a token? Give every expert of a token a part in the output, ask for any loss, and look at the
# gradients.

# %%
token = x[:1]  # one token
router = centroids.clone().requires_grad_()
experts = (torch.randn(E, D, D) / D).requires_grad_()  # the simplest experts: one matrix each
affinity = (token @ router.T).sigmoid()
chosen = affinity.topk(K, dim=-1).indices[0]
gates = affinity[0, chosen] / affinity[0, chosen].sum()
output = sum(g * token @ experts[e] for g, e in zip(gates, chosen.tolist(), strict=True))
(output - torch.randn(1, D)).pow(2).mean().backward()
learning = (experts.grad.abs().sum((1, 2)) > 0).nonzero().flatten().tolist()
moved = (router.grad.abs().sum(1) > 0).nonzero().flatten().tolist()
print("chosen experts:         ", sorted(chosen.tolist()))
print("experts with a gradient:", learning)
print("centroids with one:     ", moved)

# %% [markdown]
# Only who is chosen learns. An expert that has learned is of more use, so the loss raises its gate, so it is chosen
# more often. One that is never chosen gets no gradient at all, neither for its weights nor for its centroid: by itself
# it does not come back. The old remedy is an extra loss on the load, and such a loss pulls at the same weights as the
# main one. The report asks for something that does not.
#
# ### A bias for the choice
#
# Add a number $b_i$ to each score **for the choice only** (Eq. 16). After each step look at the load: was expert $i$
# above the mean, lower its bias by a fixed speed $\gamma$; was it below, raise it. There is no gradient in it.

# %%
speed = 0.01
bias = torch.zeros(E)
violation = []
for _step in range(201):
    scores = (tokens() @ centroids.T).sigmoid()
    load = torch.bincount((scores + bias).topk(K, dim=-1).indices.flatten(), minlength=E).float()
    violation.append(max_vio(load))
    bias = bias - speed * torch.sign(load - load.mean())  # above the mean: down
print("MaxVio at steps 0, 10, 20, ...:", [round(v, 2) for v in violation[:101:10]])
print(f"biases now from {bias.min():.2f} to {bias.max():.2f}")

# %% [markdown]
# The router did not change, and its tokens are new in every step; what changed is sixteen numbers. MaxVio does not end
# at zero: a bias moves by $\gamma$ in every step, also when it is as good as right, and random tokens are never quite
# even.
#
# ### It chooses and does not weigh
#
# The gate weights are made of the scores *without* the bias. Take a token whose choice the bias changed, and compare
# what two experts that stayed weigh against each other:

# %%
before = scores.topk(K, dim=-1).indices
after = (scores + bias).topk(K, dim=-1).indices


def gate_table(scores, ids):
    """scores [N, E], ids [N, K] -> gates [N, E], 0 where not chosen."""
    kept = torch.zeros_like(scores).scatter(-1, ids, scores.gather(-1, ids))
    return kept / kept.sum(-1, keepdim=True)


free, balanced = gate_table(scores, before), gate_table(scores, after)
both = (free > 0) & (balanced > 0)
changed = (both.sum(-1) < K) & (both.sum(-1) >= 2)
t = int(changed.nonzero()[0])
first, second = both[t].nonzero().flatten()[:2].tolist()
print(f"{int((both.sum(-1) < K).sum())} of {N} tokens go to other experts than without the bias")
print(f"token {t}, experts {first} and {second}, which both choices have:")
print(f"  ratio of their gates without the bias {free[t, first] / free[t, second]:.4f}")
print(f"  ratio of their gates with the bias    {balanced[t, first] / balanced[t, second]:.4f}")

# %% [markdown]
# So the bias says *who*, and the token says *how much*. A busy expert that a token badly needs keeps its loud voice, if
# it is chosen at all.
#
# ### A limit on the machines
#
# The experts of a layer are spread over several machines (nodes), and each node that a token visits costs a message.
# So V3 first chooses nodes, then experts on them. A node is as good as its best experts together. Here it is for one
# token, with the experts in groups, one group a node:

# %%
G, kept = 4, 2
one = scores[0] + bias  # [E], for the choice
groups = one.view(G, E // G)  # one row a group
group_scores = groups.topk(2, dim=-1).values.sum(-1)  # [G], the two best of each
allowed = group_scores.topk(kept).indices
closed = torch.ones(G, dtype=torch.bool)
closed[allowed] = False
masked = groups.masked_fill(closed[:, None], float("-inf")).flatten()  # [E]
limited = masked.topk(K).indices
print("group scores:      ", [round(v, 3) for v in group_scores.tolist()])
print("groups that stay:  ", sorted(allowed.tolist()))
print("the best experts:  ", sorted(one.topk(K).indices.tolist()))
print("the best allowed:  ", sorted(limited.tolist()))

# %% [markdown]
# Two details are easy to get wrong, and the second exhibit is about one of them. A group is ranked by its *two* best
# experts and not by the best alone. And a closed expert is set to minus infinity: with biases, a score may be negative.
#
# ### A loss for each sequence
#
# The bias looks at the whole batch. A single sequence may still send all its tokens to the same experts, while others
# make up for it. Against that extreme V3 has a very weak loss (Eq. 17 to 20). For one sequence of $T$ tokens:
#
# $$\mathcal L_\mathrm{Bal} = \alpha\sum_i f_i P_i$$
#
# $f_i$ counts how often expert $i$ is among the best, times $N_r/(K_r T)$, which makes an even load one. $P_i$ is its
# mean share of the scores; the shares of a token add up to one over **all** experts.


# %%
def balance(scores, top_k):
    """scores [T, E] of one sequence -> the loss without alpha, f [E], P [E]."""
    T, experts = scores.shape
    best = scores.topk(top_k, dim=-1).indices.flatten()
    f = torch.bincount(best, minlength=experts) * experts / (top_k * T)  # Eq. 18
    P = (scores / scores.sum(-1, keepdim=True)).mean(0)  # Eq. 19 and 20
    return (f * P).sum(), f, P


T = 8
flat = torch.full((T, E), 0.5)
for row in range(T):  # a hair in favour of four experts, which take turns
    flat[row, (row * K + torch.arange(K)) % E] += 1e-6
greedy = torch.full((T, E), 0.01)
greedy[:, :K] = 0.99  # every token loves the same four
print(f"perfect balance:  {balance(flat, K)[0]:.3f}, so the loss is alpha itself")
print(f"all to the same:  {balance(greedy, K)[0]:.3f}, and at most {E / K:.0f}")

# %% [markdown]
# A count has no gradient. Then how can this loss teach anything? Through $P$. For each expert, $f_i$ is a fixed weight
# on its share of the scores: who is busy now gets its scores pushed down hardest.

# %%
preference = torch.randn(E)
raw = (torch.randn(T, E) + 2 * preference).requires_grad_()  # a sequence with favourites
loss, f, P = balance(raw.sigmoid(), K)
loss.backward()
push = -raw.grad.sum(0)  # where a step against the gradient moves the scores
busy, idle = int(f.argmax()), int(f.argmin())
print(f"does f have a gradient? {f.requires_grad}. Does P? {P.requires_grad}.")
print(f"expert {busy}: f = {f[busy]:.2f}, pushed {'down' if push[busy] < 0 else 'up'}")
print(f"expert {idle}: f = {f[idle]:.2f}, pushed {'down' if push[idle] < 0 else 'up'}")

# %% [markdown]
# ### Even in each sequence, or over the batch?
#
# Take two sequences with opposite tastes: one uses the first half of the experts only, the other the second half. Over
# the batch everything is even. What does the loss say if it is taken over each sequence, and what if over both at once?

# %%
halves = torch.full((2, T, E), 0.02)
for row in range(T):
    place = (row * K + torch.arange(K)) % (E // 2)
    halves[0, row, place] = 0.98
    halves[1, row, place + E // 2] = 0.98
each = torch.stack([balance(sequence, K)[0] for sequence in halves]).mean()
together = balance(halves.flatten(0, 1), K)[0]
print(f"over each sequence: {each:.3f}")
print(f"over the batch:     {together:.3f}")

# %% [markdown]
# The sequence-wise loss objects, the batch-wise one does not. If experts are to know topics, a text about one topic
# *must* load them unevenly. A loss in every sequence forbids that; a bias, or a loss over the batch, does not. This is
# the report's own explanation of why its method does well (§4.5.3).

# %% [markdown]
# ## Reveal

# %%
worst = torch.zeros(E)
worst[:K] = N
guess_1.reveal(
    max_vio(worst), "four experts share what sixteen should have, four times the mean each"
)

# %%
shifted = (scores + bias + 1).topk(K, dim=-1).indices
same = bool((gate_table(scores, shifted) == gate_table(scores, after)).all())
guess_2.reveal("c", f"the gates of all {N} tokens are the same, bit for bit: {same}")

# %% [markdown]
# Only differences of biases matter. Nothing in the rule keeps their mean at zero, and in a long training it may wander
# off (difference D5). That is harmless, except for whoever masks with a zero.

# %%
guess_3.reveal(
    [violation[step] for step in (0, 25, 50, 100, 200)],
    f"from {violation[0]:.2f} at the first step to {violation[-1]:.2f} at the last",
)

# %% [markdown]
# It falls about as fast as the bias can walk, and then stays near a small value, for the reasons above.

# %% [markdown]
# ## Check against the package
#
# `Router` holds centroids and bias. With our numbers and a limit on groups, and our own router in its batched form:

# %%
cfg = ModelConfig.preset(
    "nano", hidden_size=D, n_routed_experts=E, num_experts_per_tok=K, n_group=G, topk_group=kept,
    routed_scaling_factor=1.0,
)  # fmt: skip
package = Router(cfg)
package.load_state_dict({"weight": centroids, "e_score_correction_bias": bias})
x = tokens()
scores = (x @ centroids.T).sigmoid()
by_group = (scores + bias).view(N, G, E // G)
best = by_group.topk(2, dim=-1).values.sum(-1).topk(kept, dim=-1).indices
stays = torch.zeros(N, G).scatter(-1, best, 1.0).bool()
ids = by_group.masked_fill(~stays[..., None], float("-inf")).flatten(1).topk(K, dim=-1).indices
ours = gate_table(scores, ids)
with torch.no_grad():
    routing = package(x)
theirs = torch.zeros(N, E).scatter(-1, routing.ids, routing.weights)
print(f"max |diff| against Router: {(ours - theirs).abs().max():.1e} (tolerance 1e-05)")

load = routing.counts
difference = abs(max_vio(load) - max_violation(load[None]).item())
print(f"max |diff| against max_violation: {difference:.1e} (tolerance 1e-05)")
stepped = bias - speed * torch.sign(load - load.float().mean())
update_routing_bias([package], load[None], speed)
difference = (stepped - package.e_score_correction_bias).abs().max()
print(f"max |diff| against update_routing_bias: {difference:.1e} (tolerance 1e-05)")

# %%
sequences = torch.randn(3, 17, E).sigmoid()  # [B, T, E]
each = torch.stack([balance(sequence, K)[0] for sequence in sequences]).mean()
together = balance(sequences.flatten(0, 1), K)[0]
difference = (each - sequence_balance_loss(sequences, K)).abs()
print(f"max |diff| against sequence_balance_loss: {difference:.1e} (tolerance 1e-05)")
difference = (together - batch_balance_loss(sequences, K)).abs()
print(f"max |diff| against batch_balance_loss: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# ## Play
#
# ### Step through a gate
#
# This is one token of the shipped model `nano`, in its first layer with experts. In Lab, walk through the six steps
# with the arrow keys, then choose a step that is missing. Change the text or the token and run again.

# %%
folder = latest_checkpoint(data_dir() / "checkpoints" / "nano")
model, tokenizer = load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)
stepper = GateStepper.of_token(model, tokenizer, "def double(x): return 2 * x", layer=1, token=3)
stepper

# %% [markdown]
# *In words: six rows of bars, one bar an expert, groups parted by lines: the scores; the same plus bias; a value for
# each group; the groups that stay; the experts that are chosen; their weights.*
#
# ### What is the bias of a trained model worth?
#
# `nano` was trained with the bias. We send held-out text through it, as it is and with all biases set to zero: once
# mixed as in training, once arithmetic alone.

# %%
corpus = embedded_corpus()
mixed = select_documents(corpus.heldout, 30_000)  # each domain with its share
arithmetic = select_documents([d for d in corpus.heldout if d.domain == "math"], 15_000)


def rows_of(documents, length=128, rows=40):
    """Token ids [rows, length], from all over the documents."""
    text = torch.tensor([t for d in documents for t in tokenizer.encode(d.text)])
    windows = text[: len(text) // length * length].view(-1, length)
    return windows[torch.linspace(0, len(windows) - 1, min(rows, len(windows))).long()]


@torch.no_grad()
def violation_of(batch):
    """MaxVio of each MoE layer of the main model."""
    return max_violation(model(batch, mtp=False, record_routing=True).expert_counts).tolist()


texts = {"mixed": rows_of(mixed), "arithmetic": rows_of(arithmetic)}
with_bias = {name: violation_of(batch) for name, batch in texts.items()}
biases = [router.e_score_correction_bias.clone() for router in model.routers]
for router in model.routers:
    router.e_score_correction_bias.zero_()
without_bias = {name: violation_of(batch) for name, batch in texts.items()}
for router, learned in zip(model.routers, biases, strict=True):
    router.e_score_correction_bias.copy_(learned)
for name, batch in texts.items():
    for layer, (on, off) in enumerate(
        zip(with_bias[name], without_bias[name], strict=True), start=1
    ):
        print(
            f"{name:10} {batch.numel():5} tokens, layer {layer}: MaxVio {on:.2f}, without bias {off:.2f}"
        )

# %% [markdown]
# Compare the largest of these with your first guess. A bias is fitted to the mixture of texts that it was trained on.
# On another mixture, or in a small batch, it promises little.
# The report names both as the price of its method (§4.5.3).

# %% [markdown]
# ### A short training, four ways
#
# A fresh `nano`, the same text in the same order, four times: with nothing that balances, with one of the two losses
# (at the strength that the laboratory of the package uses), and with the bias. It is too short to say which model
# becomes better; it is long enough to see what the routers do.


# %%
SPEED = 0.02  # of the bias: faster than in a whole run, since these have so few steps


def short_training(way, steps=40, sequences=8, length=64):
    """MaxVio of every step [steps], its routing snapshots, and the model."""
    torch.manual_seed(0)
    fresh = DeepSeekV3(
        ModelConfig.preset(
            "nano",
            num_nextn_predict_layers=0,
            balance_loss_alpha=LOSS_ALPHA if way == "sequence" else 0.0,
            batch_balance_loss_alpha=LOSS_ALPHA if way == "batch" else 0.0,
        )
    )
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=3e-3, betas=(0.9, 0.95))
    folder = Path(snapshots.name, way)
    folder.mkdir(exist_ok=True)
    recorder = RoutingRecorder(folder, fresh, every=1, last_step=steps)
    violation = []
    for step in range(1, steps + 1):
        starts = torch.randint(len(training) - length - 1, (sequences,)).tolist()
        rows = torch.stack([training[start : start + length + 1] for start in starts])
        recorder.before(step)
        result = fresh(rows[:, :-1], rows[:, 1:], keep_logits=False)
        recorder.after(result.expert_counts)
        losses = result.losses
        total = losses["main"]
        if way in ("sequence", "batch"):
            total = total + LOSS_ALPHA * losses["balance" if way == "sequence" else "batch_balance"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if way == "bias":
            update_routing_bias(fresh.routers, result.expert_counts, SPEED)
        violation.append(max_violation(result.expert_counts))
    recorder.close()
    return torch.stack(violation).mean(1), folder, fresh


training = torch.tensor(
    [t for d in select_documents(corpus.train, 200_000) for t in tokenizer.encode(d.text)]
)
snapshots = tempfile.TemporaryDirectory()
runs = {way: short_training(way) for way in WAYS}
for way, (values, _, _) in runs.items():
    print(
        f"{WAYS[way]:20} worst step: MaxVio {values.max():.2f}, mean of the last ten steps {values[-10:].mean():.2f}"
    )

figure = Picture(*style.SIZE, layout="constrained")
axes = figure.subplots()
for (way, (values, _, _)), (colour, line, _) in zip(runs.items(), style.STYLES, strict=False):
    axes.plot(values, color=colour, linestyle=line, label=WAYS[way])
axes.set(xlabel="step", ylabel="MaxVio, mean of the layers", ylim=(0, None))
axes.legend()
figure

# %% [markdown]
# *In words: MaxVio over the steps of the four runs; the lines above give the peak of each and where it ended.*
#
# Each run also left a snapshot of its routing at every step. Here is the one with the bias: press *Play* under "The
# training run", or move its slider, and watch a busy expert's bias go down and its load follow. Then put `"none"` into
# the first line.

# %%
_, folder, trained = runs["bias"]
scrubber = RoutingExplorer(
    trained, tokenizer, text="for name in names:\n    print(name)", run=folder
)
print(scrubber.summary())
scrubber

# %% [markdown]
# One seed, few steps, small batches: a picture and no proof. The laboratory of the package trained the same four ways
# longer and with several seeds, and measured held-out text as well. What it found was kept, and here it is. Before you
# run the cell: which of the four do you expect to model text best?

# %%
lab = load_lab()
print(f"{lab['steps']} steps, seeds {lab['seeds']}; MaxVio in the last fifth, and held-out text")
print(f"{'':27}MaxVio by step   all together   bits per byte   the bias minus this, by seed")
of_bias = {run["seed"]: run["bits_per_byte"]["all"] for run in lab["runs"] if run["way"] == "bias"}
for part in (lab, lab["stronger"]):
    times = part["alpha"] / lab["alpha"]
    for way, found in part["summary"].items():
        name = WAYS[way] + (f", {times:.0f}x as strong" if times > 1 else "")
        runs_of_way = [run for run in part["runs"] if run["way"] == way]
        differences = [of_bias[run["seed"]] - run["bits_per_byte"]["all"] for run in runs_of_way]
        print(
            f"{name:27}{found['maxvio_last_fifth']['mean']:14.2f}"
            f"{found['maxvio_of_last_fifth_together']['mean']:15.2f}{found['bits_per_byte']['all']['mean']:16.3f}   ",
            " ".join(f"{difference:+.3f}" for difference in differences if way != "bias"),
        )
figure = Picture(*style.SIZE, layout="constrained")
axes = figure.subplots()
for (way, name), (colour, line, _) in zip(WAYS.items(), style.STYLES, strict=False):
    points = curve(lab, way)
    axes.plot(points["steps"], points["mean"], color=colour, linestyle=line, label=name)
    axes.fill_between(points["steps"], points["low"], points["high"], color=colour, alpha=0.2)
axes.set(xlabel="step", ylabel="MaxVio, mean of the layers", ylim=(0, None))
axes.legend()
figure

# %% [markdown]
# *In words: MaxVio over the steps of the kept runs, mean of the layers; each band goes from the lowest to the highest
# seed.*
#
# Two columns of MaxVio, for two questions. *By step* is what a machine feels: it waits for the busiest expert of this
# batch. A batch here is a thousand tokens of a few documents, so some of it is chance, and a bias cannot answer to a
# single batch. *All together* counts the tokens of the whole last fifth, where chance averages out: are all experts
# used? Each way is best at what it looks at.
#
# The last column asks the report's question (Table 5 and §4.5.3): does balancing cost quality? Below 0, the model with
# the bias is the better one. Do the seeds agree on the sign? And would you have published after the weaker losses
# alone?

# %% [markdown]
# ### Topic or spelling?
#
# Figure 9 of the report shows that experts of a model balanced without a loss take far more tokens of one domain than
# of another. Do ours? Send the held-out documents through `nano`, and measure how differently two domains are routed:
# zero if alike, one if they have no expert in common.
#
# But domains differ in their *tokens*, too: arithmetic is full of digits. So we also compare them after giving all
# domains the same mix of kinds of tokens (word, number, punctuation, ...), and then the same mix of tokens, one by one.
# And what if the domains mean nothing? `chance` deals them out anew among the documents.

# %%
documents = []
for domain in corpus.domains:
    documents += select_documents([d for d in corpus.heldout if d.domain == domain], 25_000)
routed = route_documents(model, tokenizer, documents)
print(f"{len(routed.tokens)} tokens of {', '.join(routed.domain_names)}")
print(f"{'same mix of':14}{'layer':>7}{'difference':>12}{'chance':>9}{'text left':>11}")
excess = {}
for match in (None, "kind", "token"):
    found, chance = effect(load_by_domain(routed, match)), chance_effect(routed, match)
    excess[match] = (found - chance).mean()
    for layer, difference, luck in zip(routed.layers, found, chance, strict=True):
        left = shared_part(routed, match)
        print(f"{match or 'nothing':14}{layer:7}{difference:12.2f}{luck:9.2f}{left:11.0%}")
print(
    f"above chance, mean of the layers: {excess[None]:.2f}; with the same tokens {excess['token']:.2f}"
)
if excess["token"] < 0.02:
    print("no more than chance: in this text, what looks like topic is spelling")
else:
    print("more than chance: the same token goes elsewhere in another domain")

# %% [markdown]
# Read the table with its last column. Domains share few tokens, so with the same tokens the comparison rests on a small
# part of the text, and the rows are about different parts: their numbers cannot be subtracted from each other. What the
# last rows do say is whether the *same* token goes elsewhere in another domain, so that what stands around it has a
# say. The report's figure has no such control: it shows that experts differ by domain, and not why.

# %% [markdown]
# ## Exercises
#
# Write your code in the cell that opens with `# Exercise`, run it, then run the cell under it.


# %% tags=["exercise"]
# Exercise 7.1 (5 minutes): MaxVio of every layer. Perfect balance is 0.
def imbalance(counts):
    """counts [L, E], whole numbers: tokens of each expert -> [L]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("7.1").hint(), and in the end exercise("7.1").solution()
exercise("7.1").check(imbalance)

# %% [markdown]
# A step may be cut into several micro-batches, to save memory. The report counts the load over the whole batch of the
# step.


# %% tags=["exercise"]
# Exercise 7.2 (10 minutes): one step of the routing bias. An expert exactly at the mean of its layer stays.
def updated_bias(bias, counts, speed):
    """bias [L, E], counts [M, L, E] of the M micro-batches of a step -> the new bias [L, E]."""
    ...  # your code here


# %% tags=["check"]
exercise("7.2").check(updated_bias)


# %% tags=["exercise"]
# Exercise 7.3 (15 minutes): all tokens at once, with bias and limit. A group is as good as its two best biased scores.
def node_limited_gates(scores, bias, groups, kept, top_k):
    """scores [N, E], bias [E] -> gates [N, E], from the `kept` best groups: 0 if not chosen; rows add up to 1."""
    ...  # your code here


# %% tags=["check"]
exercise("7.3").check(node_limited_gates)


# %% tags=["exercise"]
# Exercise 7.4 (15 minutes): Eq. 17 to 20 for a batch, without alpha. The checker looks at the gradient, too.
def sequence_loss(scores, top_k):
    """scores [B, T, E] -> the mean over the sequences, a tensor without dimensions."""
    ...  # your code here


# %% tags=["check"]
exercise("7.4").check(sequence_loss)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 7.A: a busy expert gets busier

# %%
exhibit("7.A").show()

# %% tags=["predict"]
exhibit("7.A").predict()

# %%
exhibit("7.A").run()

# %%
exhibit("7.A").diagnose()

# %% [markdown]
# ### Exhibit 7.B: a 0 that wins

# %%
exhibit("7.B").show()

# %% tags=["predict"]
exhibit("7.B").predict()

# %%
exhibit("7.B").run()

# %%
exhibit("7.B").diagnose()

# %% [markdown]
# ### Exhibit 7.C: a bias with a say in the result

# %%
exhibit("7.C").show()

# %% tags=["predict"]
exhibit("7.C").predict()

# %%
exhibit("7.C").run()

# %%
exhibit("7.C").diagnose()

# %% [markdown]
# ### Exhibit 7.D: a group with one star

# %%
exhibit("7.D").show()

# %% tags=["predict"]
exhibit("7.D").predict()

# %%
exhibit("7.D").run()

# %%
exhibit("7.D").diagnose()

# %% [markdown]
# ### Exhibit 7.E: a loss that only watches

# %%
exhibit("7.E").show()

# %% tags=["predict"]
exhibit("7.E").predict()

# %%
exhibit("7.E").run()

# %%
exhibit("7.E").diagnose()

# %% [markdown]
# ## What the report says
#
# * **§2.1.2**: the bias of Eq. 16 is used for routing only, and the load is that of the whole batch of each step. The
#   bias update speed is 0.001 for the first 14.3T tokens, then the bias stands still (§4.2).
# * **Eq. 17 to 20**: the sequence-wise loss is only a complement, with a balance factor alpha of 0.0001 (§4.2). Eq. 18
#   is printed without the bias: it counts whom the scores would choose (difference D7).
# * **Node limit**: a group's score is the sum of its highest affinity scores. The released code takes the biased ones,
#   as we do (difference D2).
# * **Table 5** compares balancing by losses with the bias alone, all losses removed. For the large model HumanEval goes
#   from 40.2 to 46.3, and MMLU falls from 68.3 to 67.2: better in most rows, not in all. So Table 5 is not the
#   recipe of V3, which keeps the tiny loss.
# * **§4.5.3**: the validation loss of the 1B model is 2.258 with the sequence-wise loss, and 2.253 with the bias or
#   the batch-wise loss. The report concludes that the scope of the balance counts, and not that there is a loss.
# * **Figure 9** shows the load of experts by domain for two models; it has no control for spelling.

# %% [markdown]
# ## Recap
#
# * Only who is chosen learns, so a router left alone tends to favour a few.
# * The bias is a thermostat: above the mean down, below it up, by a fixed step. It chooses and does not weigh.
# * The sequence-wise loss has a gradient through the shares only, and is one at perfect balance.
# * Balance over the batch lets a sequence be one-sided. An expert for a domain may be one for a spelling.

# %%
draw_idea_graph(highlight=["lossfree", "specialisation"])

# %% [markdown]
# *In words: the idea graph of the report. The nodes of balancing without a loss and of specialisation are filled: you
# have built the first and measured the second.*
#
# **Next:** lesson 08 puts the parts together to the whole model, and counts its parameters to the last digit.
