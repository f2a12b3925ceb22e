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
# # 09 Multi-token prediction
#
# *About an hour with the exercises. You need lesson 08, in which the whole model came together. This lesson builds the
# part that stands behind it: a module that predicts one token more.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import matplotlib.pyplot as plt
    import torch
    import torch.nn.functional as F

    from dsv3_mini import ModelConfig, load_pretrained
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.course.facts import load_facts
    from dsv3_mini.model.count import count_parameters
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train.balance_lab import load_lab
    from dsv3_mini.train.checkpoint import latest_checkpoint
    from dsv3_mini.train.data import load_corpus
    from dsv3_mini.train.evaluate import select_documents
    from dsv3_mini.train.mtp_effect import ARMS, draft_agreement
    from dsv3_mini.train.schedule import REPORT_TOKENS, mtp_weight
    from dsv3_mini.train.token_data import IGNORE, held_out_windows
    from dsv3_mini.train.tokenizer import Tokenizer
    from dsv3_mini.viz import style
    from dsv3_mini.viz.idea_graph import draw_idea_graph
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
# > `for i in range(10):`
#
# In training, each position of a text is asked one thing: which token comes next? Many of these questions are easy.
# Behind `range` comes a bracket, whatever the loop is for. A model can answer them without any idea where the line is
# going.
#
# Now ask each position a second thing: which token comes *after* the next?
#
# **What would a second target teach?**
#
# Before you read on: a position knows the text up to its own token. To say what comes after the next token, should it
# be told the next one? What would be lost if it were not, and what would be wrong with telling it more than that?

# %% [markdown]
# ## What you will be able to do
#
# * Say for every position of a text what the module has read, what it is given, and what it predicts.
# * Build the module of §2.2 from its equations: two norms, a projection, a block, and a head that is not its own.
# * Write its loss with the report's normaliser, and say when that differs from the usual mean.
# * Count what the second target costs.
# * Measure how often the module says what the main model would say.
# * Recognise two bugs: one makes the loss too good, the other is invisible in the text that comes out.

# %% [markdown]
# ## Predict

# %% tags=["predict"]
guess_1 = predict(
    "9.p1",
    "After training you take the module away. What happens to the logits of the main model?",
    choices={
        "a": "nothing: they are the same to the last bit",
        "b": "they get a little worse: the second opinion is missing",
        "c": "they are useless until the model has been trained on without it",
    },
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "9.p2",
    "DeepSeek-V3 has 61 layers. Its module is one more block, a projection, and the output head used a second time. By "
    "how many percent does it raise the number of weights that a training token is multiplied with?",
    unit="%",
)
guess_2

# %% tags=["predict"]
guess_3 = predict(
    "9.p3",
    "The shipped nano reads held-out Python code. The module and, one token later, the main model each name their "
    "first choice for the same place. At how many percent of the places is it the same token?",
    unit="%",
)
guess_3

# %% [markdown]
# ## Build it
#
# ### Seven positions
#
# The line from above has eight tokens, so it makes seven positions with a target. Here they are, for the module of
# depth 1, the only one that V3 has. (The report counts tokens from 1, and so does this table.)

# %%
folder = latest_checkpoint(data_dir() / "checkpoints" / "nano")
model, tokenizer = load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)
text = tokenizer.encode("for i in range(10):")
word = [repr(tokenizer.decode([token])) for token in text]

print("position   state has read    main predicts    module is given   module predicts")
for i in range(1, len(text)):
    row = f"{i:<11}t_1 .. t_{i}        t_{i + 1} = {word[i]:<11}"
    if i + 1 < len(text):
        row += f"t_{i + 1} = {word[i]:<12}t_{i + 2} = {word[i + 1]}"
    else:
        row += f"{'nothing':<18}nothing"
    print(row)

# %% [markdown]
# Read one row, the third. The state of the main model has read `for i in`. The main model predicts the next token. The
# module is *told* that token, and predicts the one behind it.
#
# * It is told nothing that the main model would not know one step later. So nobody looks ahead: to predict token $t_5$,
#   both have seen $t_1$ to $t_4$. The report calls that keeping the complete causal chain.
# * A head that had to name the token after the next *without* being told the next one would have to guess two tokens at
#   once. The report sets its sequential design apart from such parallel heads.
# * The last position drops out. Its state is there, and the module could be told the last token, but the text has no
#   token for it to predict. Seven positions for the main model are six for the module.
#
# Shapes: `B` texts, `T` positions of the main model, `D` width, `V` vocabulary. Depth `k` has `T - k` positions.
#
# ### Two halves
#
# The module starts from a state $\mathbf h_i$ and an embedding. Eq. 21 joins them:
#
# $$\mathbf h_i'^{k} = M_k\,[\mathrm{RMSNorm}(\mathbf h_i^{k-1});\ \mathrm{RMSNorm}(\mathrm{Emb}(t_{i+k}))]$$
#
# Why a norm for each? Look at the sizes.


# %%
def rms_norm(x, weight, eps=1e-6):
    """x [..., D], weight [D] -> [..., D]: every vector to the size 1, then channel by channel times its weight."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


module = model.mtp_modules[0]
tokens = torch.tensor([text])[:, :-1]  # [1, T], what the main model reads
with torch.no_grad():
    h = model.hidden_states(tokens)  # [1, T, D]
    embedded = model.model.embed_tokens(tokens)  # [1, T, D]
    normed = rms_norm(h, module.hnorm.weight), rms_norm(embedded, module.enorm.weight)


def size(x):
    """Root mean square of the numbers of x."""
    return x.square().mean().sqrt().item()


print(f"state     {size(h):6.2f}, after its norm {size(normed[0]):.2f}")
print(f"embedding {size(embedded):6.2f}, after its norm {size(normed[1]):.2f}")


# %% [markdown]
# The two come from different places, and nothing in training keeps their sizes together. Behind its own norm each half
# has a size that the module has learned. Now Eq. 21, letter by letter:


# %%
def join_printed(state, embedded, module, matrix):
    """state and embedded [B, T', D], matrix [D, 2 D] -> [B, T', D], as Eq. 21 prints it."""
    halves = (rms_norm(state, module.hnorm.weight), rms_norm(embedded, module.enorm.weight))
    return torch.cat(halves, dim=-1) @ matrix.T


# %% [markdown]
# Which columns of the matrix belong to the state? The report prints the state first. In the released weights the
# embedding comes first, and the name says so: `eh_proj`. That is difference D13 between report and code. Our package,
# and so nano, has the order of the released weights. To use Eq. 21 as printed, swap the halves of the matrix:

# %%
for_embedding, for_state = module.eh_proj.weight.chunk(2, dim=1)  # [D, D] each
matrix = torch.cat((for_state, for_embedding), dim=1)  # [D, 2 D], the state first
print(f"eh_proj {list(module.eh_proj.weight.shape)}: {matrix.numel():,} weights")

# %% [markdown]
# ### One block, and a head that it does not own
#
# Behind the projection stands one whole block, with its own attention and its own experts (Eq. 22); lessons 04 to 08
# built all of it. Then comes a norm, and then the output head **of the main model** (Eq. 23). The embedding is the main
# model's, too. So the module speaks the same language as the main model, at both ends.


# %%
def module_state(model, tokens, join=join_printed):
    """tokens [B, T] -> what the head reads for the second target [B, T - 1, D]."""
    module, positions = model.mtp_modules[0], tokens.shape[1] - 1
    h = model.hidden_states(tokens)[:, :positions]  # h_1 .. h_{T-1}
    embedded = model.model.embed_tokens(tokens[:, 1:])  # the main model's table; t_2 .. t_T
    x = join(h, embedded, module, matrix)
    cos, sin = model.model.rotary(torch.arange(positions))
    x, _ = module(x, cos, sin)  # one block: attention among the module's own positions, experts
    return rms_norm(x, module.shared_head.norm.weight)


with torch.no_grad():
    state = module_state(model, tokens)
    logits = state @ model.lm_head.weight.T  # the main model's head
print(f"tokens {list(tokens.shape)} -> state {list(state.shape)} -> logits {list(logits.shape)}")
says = [repr(tokenizer.decode([token])) for token in logits[0].argmax(-1).tolist()]
print("it should say", ", ".join(word[2:]))
print("it says      ", ", ".join(says))

# %% [markdown]
# A module of depth 2 would start from the state of this module, be given the token one further on, and lose one more
# position. V3 has depth 1: one further token.
#
# **Which state?** The report says "the representation given by the main model". Before or after the final norm? It does
# not say (difference D14); the Hugging Face code feeds the state after it, and so do we. Does it matter? The module's
# own norm takes out the size of every state, but not the weights of the final norm. Divide by these, and you have what
# the state before that norm would give.


# %%
def join_before_final_norm(state, embedded, module, matrix):
    """The same with the state that goes into the final norm (up to its size, which the module's norm takes out)."""
    return join_printed(state / model.model.norm.weight, embedded, module, matrix)


corpus = load_corpus()  # the text that nano learned from, and what was held out of it
documents = select_documents(corpus.heldout, 40_000)
some = held_out_windows(tokenizer.encode_batch([d.text for d in documents[:8]]), tokenizer, 256)
wanted = some.targets[:, 1:].flatten()
with torch.no_grad():
    for name, join in (("after", join_printed), ("before", join_before_final_norm)):
        scores = module_state(model, some.inputs, join) @ model.lm_head.weight.T
        loss = F.cross_entropy(scores.flatten(0, 1), wanted, ignore_index=IGNORE)
        print(f"nano's module, fed the state {name} the final norm: loss {loss:.4f}")
weights = model.model.norm.weight
print(f"weights of nano's final norm: from {weights.min():.2f} to {weights.max():.2f}")

# %% [markdown]
# Nano was trained with the state after the norm. Fed the other one it does nearly as well, because the weights of its
# norm are not far apart. So a test on nano could hardly tell which of the two is right, and with other weights it may
# matter.
#
# ### Who sees whom
#
# A table is a promise. Here is the test: change one token, and see which predictions move.

# %%
with torch.no_grad():
    before = model(tokens).logits[0], module_state(model, tokens)[0]
    for changed in (1, 4, 5, 7):
        other = tokens.clone()
        other[0, changed - 1] = tokenizer.encode("x")[0]
        after = model(other).logits[0], module_state(model, other)[0]
        moved = [(a - b).abs().amax(-1) > 1e-4 for a, b in zip(before, after)]
        places = [(m.nonzero().flatten() + 1).tolist() for m in moved]
        print(f"t_{changed} changed: main positions {places[0]}, module positions {places[1]}")

# %% [markdown]
# Position 3 of the module predicts $t_5$ and moves with $t_4$, but not with anything later. Had it moved with $t_5$,
# the module would know its own target. That is the first exhibit below.
#
# ### Where a document ends
#
# Training rows are packed: documents are laid end to end, with an end token between them (§4.1). In pre-training,
# tokens of one document may see those of another. What happens to the second target at such a border?

# %%
row = ["b", ")", "<eos>", "im", "port", "os"]
for i in range(len(row) - 2):
    crosses = "<eos>" in row[i : i + 2]
    print(f"read up to {row[i]:6} given {row[i + 1]:6} -> predicts {row[i + 2]:6}", end=" ")
    print("(of the next document)" if crosses else "")

# %% [markdown]
# The main model crosses the border once: when it has read the end token and is asked how the next document begins. The
# module crosses twice. In the first case it is given the end token and must name the first word of whatever comes. In
# the second it is given that first word, and its state is that of a document which is over.
#
# Are these positions hard? We pack the beginnings of all held-out documents, and look at nano. (Positions that should
# predict the end token are left out here: we cut the documents, so their ends are arbitrary.)

# %%
packed = []
for document in corpus.heldout:
    packed += [*tokenizer.encode(document.text[:1000])[:40], tokenizer.eos_id]
packed = torch.tensor(packed[: len(packed) // 256 * 256]).view(-1, 256)  # [B, T + 1]
is_end = packed == tokenizer.eos_id

with torch.no_grad():
    out = model(packed[:, :-1])
for name, scores, reach in (("main", out.logits, 1), ("module", out.mtp_logits[0], 2)):
    losses = F.cross_entropy(scores.transpose(1, 2), packed[:, reach:], reduction="none")
    read = is_end[:, :-reach]  # the position has read an end token last
    given = is_end[:, 1:-1] if reach == 2 else torch.zeros_like(read)
    elsewhere = ~(read | given | is_end[:, reach:])
    kinds = {"elsewhere": elsewhere, "has read the end": read, "is given the end": given}
    for kind, places in kinds.items():
        if places.any():
            print(f"{name:7}{kind:17} {int(places.sum()):5,} positions, loss", end=" ")
            print(f"{losses[places].mean():.2f}")

# %% [markdown]
# The hard position is the same for both: naming the first word of a new document from nothing. Where the module is
# given that word, it does no worse than elsewhere: in these texts beginnings are much alike. There are some sixty
# borders in this sample, too few for more than that.
#
# The package counts such positions like all others, because the report mentions no exception. Some training frameworks
# mask them (difference D16); you write that mask in an exercise.
#
# ### The loss
#
# Eq. 24 is the loss of depth $k$, and Eq. 25 puts the depths together:
#
# $$\mathcal L^k = -\frac1T \sum_{i=2+k}^{T+1} \log P_i^k[t_i], \qquad
# \mathcal L_{\mathrm{MTP}} = \frac{\lambda}{D} \sum_{k=1}^{D} \mathcal L^k$$
#
# ($D$ is the number of depths here.) Count the terms of the sum, then look at what it is divided by.

# %%
print("     T   terms at depth 1   divided by T, the loss is smaller by")
for T in (8, 64, 256, 4096):
    print(f"{T:6}{T - 1:19}{1 / T:39.2%}")

# %% [markdown]
# There are $T - k$ terms, and the report divides by $T$. The usual code divides by the number of terms (difference
# D15). In V3, with sequences of 4096 tokens, the two are as good as equal. In a test with a short text they are not,
# and then one has to know which of them the numbers belong to. Here are both for nano, on text that it has not seen:

# %%
inputs, targets = packed[:, :-1], packed[:, 1:]  # [B, T] each
with torch.no_grad():
    scores = module_state(model, inputs) @ model.lm_head.weight.T  # [B, T - 1, V]
log_p = scores.log_softmax(-1).gather(
    -1, targets[:, 1:, None]
)  # of the right tokens, [B, T - 1, 1]
by_report, usual = -log_p.sum() / targets.numel(), -log_p.mean()
print(f"divided by T: {by_report:.4f}   by T - 1: {usual:.4f}")

# %% [markdown]
# The weight $\lambda$ keeps the second target from taking over: 0.3 in the first 10T tokens, 0.1 in the last 4.8T
# (§4.2). So early on the second target has a good part of the gradient, and at the end little.

# %%
for trillions in (0, 5, 9.9, 10, 14.7):
    weight = mtp_weight(trillions * 1e12 / REPORT_TOKENS)
    print(f"after {trillions:4}T tokens: loss = main + {weight} * MTP")

# %% [markdown]
# ### What it costs
#
# In memory: one more block with all its experts. In a training step: the weights that a token really meets, and the
# head is met a second time. Both follow by arithmetic. A weight that a token meets costs two operations in the forward
# pass, a multiplication and an addition; attention's own products and the three norms are left out here.


# %%
def cost_of_mtp(cfg):
    """Parts of the MTP modules and what they add for a token in training: rows of (name, weights met)."""
    count = count_parameters(cfg)
    active = {row.name: row.active for row in count.mtp}
    projection, norms = active["joining projection"], active["MTP norms"]
    return count, {
        "block": count.mtp_active - projection - norms,
        "projection": projection,
        "output head again": count["output head"].active,
    }


for name, preset in (("DeepSeek-V3", "v3-671b"), ("nano", "nano")):
    count, parts = cost_of_mtp(ModelConfig.preset(preset))
    met = sum(parts.values())
    print(f"{name}: {count.mtp_total:,} parameters in the module; a token in training meets")
    for part, weights in parts.items():
        print(f"    {part:18}{weights:>16,}")
    print(f"    {'together':18}{met:>16,}, or {2 * met / 1e6:,.0f} million operations")
    print(
        f"    the main model has {count.active_without_embedding:,}: {met / count.active_without_embedding:.1%} more"
    )

# %% [markdown]
# For V3, one block more after 61 is cheap; the larger part of the cost is the head. For nano, with few layers and a
# head that is large for its size, the second target is expensive. Whoever compares small models with and without MTP
# should therefore say whether at equal steps or at equal time.
#
# How many parameters does the module have? The released README says 11.5B unique parameters for MTP; our count gives
# that only when `eh_proj` is left out (difference D21).

# %% [markdown]
# ## Reveal

# %%
without = load_pretrained(folder, dtype=torch.float32)
del without.model.layers[-1]  # the module stands behind the last layer
with torch.no_grad():
    apart = (without(tokens, mtp=False).logits - model(tokens).logits).abs().max().item()
guess_1.reveal("a", f"they differ by {apart}; nothing of the main model reads the module")

# %% [markdown]
# What the second target taught is in the main model's own weights: in training, the gradient of the second loss goes
# through $\mathbf h_i$ into all of it. That is the point. The module may go when training is over, and all results of
# Table 4 are measured without it.

# %%
count, parts = cost_of_mtp(ModelConfig.preset("v3-671b"))
share = 100 * sum(parts.values()) / count.active_without_embedding
guess_2.reveal(round(share, 1), "head, block and projection, against the weights of the main model")

# %%
agreement = draft_agreement(model, tokenizer, documents, 256)
guess_3.reveal(
    round(100 * agreement["code"], 1), "measured on text as it is, both choosing greedily"
)

# %% [markdown]
# ## Check against the package
#
# First the module alone (`MTPModule.predict`), then the whole way through `DeepSeekV3`, then the loss.

# %%
with torch.no_grad():
    out = model(inputs, targets)
    cos, sin = model.model.rotary(torch.arange(inputs.shape[1] - 1))
    package, _ = module.predict(
        model.model.embed_tokens(inputs[:, 1:]), out.hidden[:, :-1], cos, sin
    )
    ours = module_state(model, inputs)
difference = (ours - package).abs().max().item()
print(f"max |diff| against MTPModule.predict: {difference:.1e} (tolerance 1e-04)")
difference = (ours @ model.lm_head.weight.T - out.mtp_logits[0]).abs().max().item()
print(f"max |diff| against the MTP logits of DeepSeekV3: {difference:.1e} (tolerance 1e-04)")
difference = (by_report - out.losses["mtp"]).abs().item()
print(f"max |diff| against the MTP loss of DeepSeekV3: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# The package itself is compared with the MTP module of Hugging Face transformers, because the released code has none:
# it leaves the module's weights out when it loads (difference D24).

# %% [markdown]
# ## Play
#
# A module that says what the main model would say next can write **drafts**: the main model checks two tokens in one
# step, where it would have written one. Lesson 12 does that. Here we only ask how often the two agree, by domain, and
# whether the module knows when it can be trusted. Change `bytes_each`, or the text of the next cell.

# %%
bytes_each = 12_000  # bytes of held-out text in each domain: yours to change
bins = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])

figure, ax = plt.subplots()
for domain, (colour, line, marker) in zip(("code", "prose", "math"), style.STYLES):
    chosen = select_documents([d for d in corpus.heldout if d.domain == domain], bytes_each)
    ids = tokenizer.encode_batch([d.text for d in chosen])
    windows = held_out_windows(ids, tokenizer, 256, overlap=128)
    with torch.no_grad():
        out = model(windows.inputs)
    counted = windows.targets[:, 1:] != IGNORE
    sure, draft = out.mtp_logits[0].softmax(-1).max(-1)  # [B, T - 1] each
    agrees = (draft == out.logits[:, 1:].argmax(-1))[counted]
    place = torch.bucketize(sure[counted], bins[1:-1])
    filled = [b for b in range(len(bins) - 1) if (place == b).sum() >= 30]  # fewer say nothing
    shares = [agrees[place == b].float().mean() for b in filled]
    middles = [(bins[b] + bins[b + 1]) / 2 for b in filled]
    ax.plot(middles, shares, color=colour, linestyle=line, marker=marker, label=domain)
    print(
        f"{domain:6} {int(counted.sum()):6,} tokens, the draft agrees at {agrees.float().mean():.1%}"
    )
ax.set(xlabel="probability that the module gives its draft", ylabel="share that agrees")
ax.set(xlim=(0, 1), ylim=(0, 1.02), title="A module that is sure agrees more often")
ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# *In words: three lines, one for each domain. They begin a little below one half, where the module gives its draft a
# small probability, and soon climb to where it agrees with the main model about nine times in ten.*
#
# Agreement is not the same as being right: both may be wrong together. And it is measured on text that somebody else
# wrote. When the model continues its own text the share may be another one.
#
# Your own text, token by token: the draft, what the main model says when it gets there, and a mark where they differ.

# %%
yours = "def add(self, name):\n    self.name = name\n    return self.name\n"
ids = tokenizer.encode(yours)
with torch.no_grad():
    out = model(torch.tensor([ids]))
drafts, main = out.mtp_logits[0][0].argmax(-1).tolist(), out.logits[0, 1:].argmax(-1).tolist()
same = sum(a == b for a, b in zip(drafts, main))
print(f"{'after':14}{'draft':16}{'main model':16}")
for token, draft, says in zip(ids[1:], drafts, main):
    shown = [repr(tokenizer.decode([t]))[:14] for t in (token, draft, says)]
    print(f"{shown[0]:14}{shown[1]:16}{shown[2]:16}{'' if draft == says else 'differ'}")
print(f"the same at {same} of {len(drafts)} places")

# %% [markdown]
# ## Exercises
#
# Write your code in the cell that opens with `# Exercise`, run it, then run the cell under it.


# %% tags=["exercise"]
# Exercise 9.1 (8 minutes): the rows of the module of any depth. The table above was that of depth 1.
def mtp_rows(text, depth):
    """text [B, S], token ids -> the tokens that the module is given at its positions, and its targets: [B, T'] each.

    Only positions for which the text has a target.
    """
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("9.1").hint(), and in the end exercise("9.1").solution()
exercise("9.1").check(mtp_rows)


# %% tags=["exercise"]
# Exercise 9.2 (8 minutes): join the halves for weights from a released checkpoint. `rms_norm` from above may be used.
def join(embedded, state, e_weight, h_weight, eh_proj):
    """embedded, state [B, T, D]; e_weight, h_weight [D], of their norms; eh_proj [D, 2 D] -> [B, T, D]."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("9.2").hint(), and in the end exercise("9.2").solution()
exercise("9.2").check(join)


# %% tags=["exercise"]
# Exercise 9.3 (12 minutes): the loss of Eq. 24 and 25, for a batch of texts and any number of depths.
def mtp_loss(logits, targets, weight):
    """logits: a list, [B, T - k, V] for depth k = 1, 2, ...; targets [B, T], of the main model; weight: lambda
    -> one number."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("9.3").hint(), and in the end exercise("9.3").solution()
exercise("9.3").check(mtp_loss)

# %% [markdown]
# Packed rows, several documents in each. Every document ends with an end token, which belongs to it.


# %% tags=["exercise"]
# Exercise 9.4 (12 minutes): at which positions do the position's own token and its target lie in one document?
def inside(text, eos, depth):
    """text [B, S] token ids, eos: the end token, depth 0 (the main model) or more -> bool [B, T'], True: inside."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("9.4").hint(), and in the end exercise("9.4").solution()
exercise("9.4").check(inside)

# %% [markdown]
# Modules of depth 1, 2, ... write one draft each. The main model checks them in order, keeps those before the first one
# that is wrong, and adds one token of its own, which always counts.


# %% tags=["exercise"]
# Exercise 9.5 (6 minutes): how many tokens does such a step give on average?
def tokens_per_step(acceptance):
    """acceptance: for each draft the chance that it is accepted, given that all before it were -> tokens expected."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("9.5").hint(), and in the end exercise("9.5").solution()
exercise("9.5").check(tokens_per_step)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 9.A: the module is given its own target
#
# Check the rows by hand for a text of five tokens.

# %%
exhibit("9.A").show()

# %% tags=["predict"]
exhibit("9.A").predict()

# %%
exhibit("9.A").run()

# %%
exhibit("9.A").diagnose()

# %% [markdown]
# ### Exhibit 9.B: the halves of eh_proj swapped

# %%
exhibit("9.B").show()

# %% tags=["predict"]
exhibit("9.B").predict()

# %%
exhibit("9.B").run()

# %%
exhibit("9.B").diagnose()

# %% [markdown]
# ## What the report says
#
# What did the second target change? Table 4 has two sizes of model, each trained with and without the module, which is
# dropped before the test. Data and everything else are the same.

# %%
print(f"{'':27}small   + MTP    diff   large   + MTP    diff")
for fact in load_facts():
    if fact.where == "Table 4":
        small, small_mtp, large, large_mtp = fact.values
        name = fact.what.split(",")[0]
        print(f"{name:24}{small:8g}{small_mtp:8g}{small_mtp - small:+8.3g}", end="")
        print(f"{large:8g}{large_mtp:8g}{large_mtp - large:+8.3g}")

# %% [markdown]
# The gains are not everywhere the same. In the large model HumanEval rises from 44.5 to 53.7, and MMLU falls from 67.5
# to 66.6. The bits per byte on Pile-test hardly move: 0.658 and 0.657. The table has one number for each model and
# test, and no spread, so small differences in it say little.
#
# And in a model as small as ours? `nano` was trained four ways: with the loss; with the module but a weight of zero;
# without the module; and without it for equally *long*, with more steps, since a step without the module is cheaper.
# Each was trained with several seeds, and the arms of a seed start from the same draw of weights and see the same
# batches. Will the second target help the first? Will it still when time is what counts?

# %%
kept = load_lab("mtp_effect")
print(
    f"{kept['steps']} steps, seeds {kept['seeds']}; a step with the module takes {kept['time_ratio']:.2f} times as long"
)
print("held-out bits per byte of the main head:")
for arm, found in kept["summary"].items():
    bits = found["bits_per_byte"]["all"]
    print(f"  {ARMS[arm]:28} {bits['mean']:.3f}  ({bits['low']:.3f} to {bits['high']:.3f})")
for arm, differences in kept["bits_per_byte_mtp_minus"].items():
    better = sum(difference < 0 for difference in differences)
    print(f"with the MTP loss, better than {ARMS[arm]!r}: {better} of {len(differences)} seeds")
    print("    differences by seed:", " ".join(f"{difference:+.3f}" for difference in differences))
print("greedy agreement of the module with the main head:")
for arm in ("mtp", "weight 0"):
    shares = [run["agreement"]["all"] for run in kept["runs"] if run["arm"] == arm]
    print(f"  {ARMS[arm]:28} {min(shares):.0%} to {max(shares):.0%}")

# %% [markdown]
# Compare the differences with the spread between seeds before you believe them. What is beyond doubt is the last pair
# of lines: a module that never learned makes no drafts.
#
# * **§2.2, Eq. 21 to 25** is the module and its loss. As motives it names a denser training signal, and that the model
#   may plan its representations ahead. These are reasons to try it, not measurements.
# * **§4.2**: depth $D$ = 1; $\lambda$ is 0.3 for the first 10T tokens and 0.1 for the last 4.8T.
# * **§5.4.3**: used for drafts, 85 to 90 % of second tokens are accepted, and decoding makes 1.8 times the tokens per
#   second. With exercise 9.5 you can say what the acceptance alone would give: 1.85 to 1.9 tokens per step with one
#   draft.
# * **Not in the report**: the order of the released weights (D13), which state goes in (D14), what happens at the
#   border of a document (D16). The released code has no MTP at all (D24).

# %% [markdown]
# ## Recap
#
# * The module at position $i$ has a state that has read up to $t_i$, is told $t_{i+1}$, and predicts $t_{i+2}$. It
#   knows what the main model knows one step later.
# * Two norms, a projection, one block; embedding and head are the main model's.
# * `eh_proj` wants the embedding first. From scratch the order is free, with the weights of others it is not.
# * The report divides by $T$, not by the positions that are left.
# * A loss that is too good is a bug: look for the target among the inputs.
# * The module can go after training, or stay to write drafts.

# %%
draw_idea_graph(highlight=["mtp"])

# %% [markdown]
# *In words: the idea graph of the report, with the node of multi-token prediction filled. It needs the transformer
# block, and speculative decoding needs it.*
#
# **Next:** lesson 10, the data that all of this is trained on.
