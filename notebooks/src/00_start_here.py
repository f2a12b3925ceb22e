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
# # 00 Start here
#
# *About 30 minutes. A tour: the map of the course, how a lesson works, and a small DeepSeek-V3 at work on text that you
# type. You need some Python; the PyTorch comes in lesson 01.*
#
# To run a cell, click it and press Shift+Enter. To run all of them: Run > Run All Cells.

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import math

    import matplotlib.pyplot as plt
    import torch
    from IPython.display import Markdown

    from dsv3_mini import InputError, ModelConfig, generate, load_pretrained
    from dsv3_mini.generate.cache import LatentCache
    from dsv3_mini.model.count import cache_bytes_per_token, count_parameters
    from dsv3_mini.paths import repo_root
    from dsv3_mini.train.checkpoint import latest_checkpoint
    from dsv3_mini.train.corpus import embedded_corpus
    from dsv3_mini.train.evaluate import evaluate_model
    from dsv3_mini.train.tokenizer import Tokenizer
    from dsv3_mini.viz import style
    from dsv3_mini.viz.idea_graph import draw_idea_graph
    from dsv3_mini.viz.routing import draw_routing, expert_load, token_label
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
# DeepSeek-V3 is a language model of 671 billion parameters, of which 37 billion work for each token (abstract, §4.2).
# It read 14.8 trillion tokens (§4.1) in 2.788 million GPU hours (Table 1). Nobody does that at home.
#
# But how it works does not depend on its size. The same parts, with the same names, fit into a model that trains on a
# laptop in minutes.
#
# **What are the ideas in DeepSeek-V3, and could you have built them?**
#
# Here they are, fifteen of them, with the fifteen links between them that the report speaks of. Each box says where in
# the report the idea stands, and which lessons build it.

# %%
draw_idea_graph()

# %% [markdown]
# *In words: a grid of fifteen boxes joined by arrows. In the middle the Transformer block: one arrow goes up to
# Multi-head Latent Attention, which shrinks the KV cache; one goes down to DeepSeekMoE, which the gate routes tokens
# into; one goes to Multi-Token Prediction. On the right stands what training costs, and what lowers it.*
#
# "Report" always means the DeepSeek-V3 Technical Report (arXiv 2412.19437). A sign like §2.1.1 is a section of it,
# "Eq." an equation. Every number in these lessons has such a place, or a cell next to it prints it.

# %% [markdown]
# ## What you will be able to do
#
# * Find your way: the map, the lessons, the code.
# * Say what happens between a text that you type and the text that comes back, with the shapes.
# * Read a routing picture: which experts work on which token.
# * Tell total from active parameters, for the real model and for the small one.
#
# ### How a lesson works
#
# * It asks before it tells. **Predict** cells record your guess: write it down, also when you are not sure.
# * You build each part in small cells. Then a cell compares it with the package and prints `max |diff|`.
# * **Exercises** are cells with a gap. Under each is a cell that says *not attempted*, *right*, or what is wrong.
#   Solutions are folded away.
# * The **bug museum** shows plausible mistakes that run without an error.
#
# **Where do I write my code?** Right here, in the cells; the notebook saves it. To start over, copy the notebook first
# (right-click > Duplicate). Rebuilding the lessons refuses to overwrite a notebook that you edited. For notebooks of
# your own: File > New; `import dsv3_mini` works in any of them.
#
# **Where does my data go?** Nowhere. Everything runs on this machine, the lessons need no network, and nothing is sent.

# %% [markdown]
# ## Predict
#
# **Guess 1.** A token goes through the real model. What share of its 671 billion parameters takes part? (a) all of
# them, (b) about a half, (c) about a twentieth, (d) about a thousandth.
#
# **Guess 2.** You type a sentence. In one layer of the small model every token goes to a few of the experts. How are
# the tokens spread? (a) all experts get about the same number, (b) some get several times as many as others, (c) most
# experts get none.

# %% tags=["predict"]
guess_1 = None  # your guess: "a", "b", "c" or "d"
guess_2 = None  # your guess: "a", "b" or "c"

# %% [markdown]
# ## Build it
#
# ### The small model
#
# `nano` has every part of DeepSeek-V3, only narrower and fewer. It ships with the course, trained for some minutes on
# what every Python brings along: its own standard library, the documentation in it, and sums.

# %%
checkpoint = repo_root() / "data" / "checkpoints" / "nano"
# To see a model that you trained yourself: checkpoint = repo_root() / "runs" / "nano"

try:
    folder = latest_checkpoint(checkpoint)
except InputError:
    raise InputError(
        f"there is no trained model in {checkpoint}: "
        "run `make train` in a terminal (it takes minutes), and then write in this cell: "
        'checkpoint = repo_root() / "runs" / "nano"'
    ) from None
torch.set_grad_enabled(False)  # nothing is trained in this lesson
model = load_pretrained(folder, dtype=torch.float32)
tokenizer = Tokenizer.load(folder)
cfg = model.cfg
print(f"{cfg.num_hidden_layers} layers of width {cfg.hidden_size}, {cfg.num_attention_heads} heads")
print(f"{cfg.n_routed_experts} routed experts, {cfg.num_experts_per_tok} of them per token")
print(f"{cfg.n_group} groups of experts, {cfg.topk_group} of them per token")
print(f"{cfg.vocab_size} different tokens")

# %% [markdown]
# ### Text becomes tokens
#
# A model reads no letters. The tokenizer cuts a text into pieces that it has seen often, and gives each its number.
# Every piece is made of bytes, so any text can be written, also in a script that the tokenizer has never met.

# %%
prompt = "def add(a, b):\n    return"  # yours: any text

tokens = tokenizer.encode(prompt)
pieces = [token_label(tokenizer.decode_bytes([token])) for token in tokens]
print(f"{len(prompt.encode())} bytes -> {len(tokens)} tokens")
for token, piece in zip(tokens, pieces, strict=True):
    print(f"{token:6}  {piece}")

# %% [markdown]
# (␣ is a space and ⏎ a line break.)
#
# ### Tokens become a guess about the next one
#
# The model gives, *for every position*, a score for each token that could come next: the **logits**. Here `B` is the
# number of texts, `T` of tokens, `V` the size of the vocabulary.

# %%
logits = model(torch.tensor([tokens]), mtp=False).logits  # [B, T] -> [B, T, V]
print(f"tokens {[1, len(tokens)]} -> logits {list(logits.shape)}")

after_the_prompt = logits[0, -1].softmax(-1)  # [V], the last position, as probabilities
best = after_the_prompt.topk(5)
for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
    print(f"{probability:6.1%}  {token_label(tokenizer.decode_bytes([token]))}")

# %% [markdown]
# ### A guess becomes a text
#
# Take the best token, append it, ask again. That is all of text generation. (Always taking the best one is called
# *greedy*.)

# %%
written = list(tokens)
for _ in range(40):
    logits = model(torch.tensor([written]), mtp=False).logits  # [1, T, V], T grows by one each time
    written.append(int(logits[0, -1].argmax()))
print(tokenizer.decode(written))

# %% [markdown]
# It is a model that learned for minutes: it knows what Python *looks* like. Greedy text also tends to run in circles.
# Drawing the next token by its probability reads better; `temperature` says how freely.

# %%
(new,) = generate(model, [tokens], max_new_tokens=60, temperature=0.8, top_p=0.95, seed=1)
print(tokenizer.decode(tokens + new))

# %% [markdown]
# ## Reveal
#
# **Guess 1.** The package counts from the config alone, without building anything. *Active* parameters are those that
# one token passes through.


# %%
def table_row(name, real, small):
    print(f"{name:22}" + "".join(f"{number:>18,}" for number in (*real, *small)))


v3 = ModelConfig.preset("v3-671b")
real, small = count_parameters(v3), count_parameters(cfg)
print(f"{'':22}{'V3 total':>18}{'V3 active':>18}{'nano total':>18}{'nano active':>18}")
for a, b in zip(real.components, small.components, strict=True):
    table_row(a.name, (a.total, a.active), (b.total, b.active))
table_row("all", (real.total, real.active), (small.total, small.active))
print()
for name, count in (("V3", real), ("nano", small)):
    print(f"{name}: {count.active / count.total:.1%} of the parameters are active")
times = real.total / real.active
print(f"guess 1: you said {guess_1 or 'nothing yet'}; one in {times:.0f}, so (c)")

# %% [markdown]
# In V3 nearly all parameters sit in the routed experts, and a token uses 8 of 256 of them (§4.2). `nano` has fewer
# experts to choose from, and its embedding and head weigh more, so a larger share is active.
#
# What counts as active is a choice; the report does not say how it got its 37 billion. With both tables of tokens, the
# embedding and the head, it is the number above. The embedding is only a look-up; without it, it is about a billion
# less:

# %%
print(f"V3 active without the input embedding: {real.active_without_embedding:,}")
loaded = model.num_parameters(include_mtp=False)
print(f"parameters of the loaded model: {loaded:,}, in the table: {small.total:,}")
print(f"cache per token in bf16: V3 {cache_bytes_per_token(v3):,} bytes, nano", end=" ")
print(f"{cache_bytes_per_token(cfg):,} bytes")

# %% [markdown]
# ## Check against the package
#
# The loop above read the whole text again for every new token. The package keeps a *cache* and reads each token once
# (lesson 02 builds it). Faster, and the same:

# %%
(new,) = generate(model, [tokens], max_new_tokens=40)  # temperature 0 is greedy
print(f"the same 40 tokens as our loop: {new == written[len(tokens) :]}")

cache = LatentCache(cfg, batch=1, max_len=len(written))
text = torch.tensor([written])
steps = [model(piece, cache=cache).logits for piece in text.split(1, dim=1)]  # one token at a time
difference = (torch.cat(steps, dim=1) - model(text, mtp=False).logits).abs().max()
print(f"max |diff| against reading the text as a whole: {difference:.1e} (tolerance 1e-04)")

# %% [markdown]
# ### How good is it?
#
# A model that predicts well can store a text in few bits. **Bits per byte** on text that it has never read is the
# measure of this course: 8 would be no idea at all, lower is better. Beside it stand two rivals that know nothing of
# language: one counts which byte follows which three, the other is the file compressor xz. (This cell takes some
# seconds: it reads the standard library of your Python.)

# %%
corpus = embedded_corpus()
report = evaluate_model(model, tokenizer, corpus, seq_len=512, max_bytes=40_000)
domains = [*corpus.domains, "all"]
print(f"{'bits per byte':16}" + "".join(f"{domain:>8}" for domain in domains))
for key, name in (("bits_per_byte", "this model"), ("ngram", "counting"), ("xz", "xz")):
    print(f"{name:16}" + "".join(f"{report[key][domain]:8.2f}" for domain in domains))
print(f"measured on {report['heldout_bytes']['all']:,} bytes that were held out of training")

# %% [markdown]
# ## Play
#
# Now the heart of the model. In each MoE layer a *router* sends every token to a few of the experts. Type a sentence,
# choose a layer, run the cell.

# %%
sentence = "def area(r): return 3 * r * r  # The area of a circle. 12 + 30 = 42"  # yours
layer = 2  # yours: a layer with experts

ids = tokenizer.encode(sentence)
labels = [token_label(tokenizer.decode_bytes([token])) for token in ids]
records = model(torch.tensor([ids]), mtp=False, record_routing=True).routing
by_layer = {record.layer: record for record in records}  # layer 0 is dense: it has no experts
record = by_layer[layer]
draw_routing(
    labels,
    record.ids[0],  # [T, K]
    record.weights[0],  # [T, K]
    n_experts=cfg.n_routed_experts,
    n_group=cfg.n_group,
    title=f"Layer {layer}: which experts each token goes to",
)

# %% [markdown]
# *In words: one row a token, one column an expert. Each row has a few coloured cells, all of them within the groups
# that the token may use. The bars below count the tokens of each expert; the dashed line is an even share.*
#
# The groups stand for machines: in V3 a token may go to at most 4 nodes, which keeps the traffic between them small
# (§2.1.2). Do equal tokens always go to the same experts? Look for one that occurs twice.

# %%
print("tokens per expert, by layer")
for number, record in by_layer.items():
    load = expert_load(record.ids, cfg.n_routed_experts)
    even = load.sum() / len(load)
    counts = " ".join(f"{count:3}" for count in load)
    print(f"layer {number}: {counts}   most: {load.max() / even:.1f} x even")
load = expert_load(by_layer[layer].ids, cfg.n_routed_experts)
least, most = load.min(), load.max()
print(f"guess 2: you said {guess_2 or 'nothing yet'}; {least} to {most} tokens in layer {layer}")

# %% [markdown]
# One sentence is never even: few tokens, one subject. So (b). Balance is asked of whole batches, not of
# sentences (§4.5.3). Take more text, a domain at a time:

# %%
layer = max(by_layer)  # the last layer
figure, axes = plt.subplots(len(corpus.domains), 1, figsize=(7.2, 4.2), sharex=True, sharey=True)
for ax, domain in zip(axes, corpus.domains, strict=True):
    text = "\n".join(document.text for document in corpus.heldout if document.domain == domain)
    ids = torch.tensor([tokenizer.encode(text[:20_000])[:2048]])
    (record,) = [r for r in model(ids, mtp=False, record_routing=True).routing if r.layer == layer]
    load = expert_load(record.ids, cfg.n_routed_experts)
    ax.bar(range(len(load)), load / load.mean(), color=style.BLUE)
    ax.axhline(1, color=style.VERMILLION, linestyle="--", linewidth=1.4)
    ax.set_title(f"{domain}: {ids.shape[1]} tokens", fontsize=10)
    busiest = [int(expert) for expert in load.argsort()[::-1][:3]]
    most = load.max() / load.mean()
    print(f"{domain:6} busiest experts {busiest}, up to {most:.1f} x the even share")
axes[-1].set(xlabel=f"routed expert of layer {layer}", xticks=range(len(load)))
axes[1].set_ylabel("load / even share")
plt.show()

# %% [markdown]
# *In words: three rows of bars, one for each kind of text, with the even share as a dashed line. The high bars stand at
# different experts in each row.*
#
# Experts specialise: nobody told them to. The report shows the same for models of 16 billion parameters, with
# Wikipedia, GitHub and mathematics (§4.5.3, Figure 9).

# %% [markdown]
# ## Exercises
#
# One small one, to try the mechanism. Write your code in the first cell, run it, then run the second.


# %% tags=["exercise"]
# Exercise 0.1 (5 minutes): from the loss that training prints to bits per byte.
def to_bits_per_byte(loss, tokens, text_bytes):
    """Mean loss in nats per token (1 nat = 1 / ln 2 bits), tokens and bytes of a text -> bits per byte."""
    ...  # your code here; math.log(2) is ln 2


# %% tags=["check"]
answer = to_bits_per_byte(2.0, 300, 1000)
if answer is None or answer is ...:
    print("Exercise 0.1: not attempted")
else:
    per_token, in_nats = 2.0 / math.log(2), 2.0 * 300 / 1000
    assert abs(answer - per_token) > 1e-6, "that is bits per token: how many tokens are in a byte?"
    assert abs(answer - in_nats) > 1e-6, "that is nats per byte: one nat is 1 / ln 2 bits"
    assert abs(answer - in_nats * math.log(2)) > 1e-6, "divide by ln 2: a nat is more than a bit"
    assert abs(answer - per_token * 1000 / 300) > 1e-6, "multiply by tokens, divide by bytes"
    right = abs(answer - per_token * 0.3) < 1e-6
    assert right, f"{answer:.3f} bits per byte for 300 tokens of 2 nats in 1000 bytes is not right"
    print("Exercise 0.1: right")

# %% [markdown] tags=["solution"]
# <details><summary>Solution of exercise 0.1</summary>
#
# ```python
# def to_bits_per_byte(loss, tokens, text_bytes):
#     bits = loss * tokens / math.log(2)  # of the whole text
#     return bits / text_bytes
# ```
#
# </details>

# %% [markdown]
# ## Bug museum
#
# Real mistakes that run without an error. For each: predict the symptom, run it, then find the cause.
#
# ### Exhibit 0.A: the wrong position
#
# The logits have the shape `[1, T, V]`. Somebody takes `logits[0, 0]`, "the prediction", instead of `logits[0, -1]`.
# What will the model write? (a) an error, (b) the same token for ever, (c) text that is only a little worse.

# %% tags=["predict"]
guess_a = None  # your guess: "a", "b" or "c"

# %%
wrong = list(tokens)
for _ in range(12):
    logits = model(torch.tensor([wrong]), mtp=False).logits
    wrong.append(int(logits[0, 0].argmax()))  # the bug: position 0
print(f"you said {guess_a or 'nothing yet'}")
print(" | ".join(token_label(tokenizer.decode_bytes([token])) for token in wrong))

# %% [markdown]
# It is (b). Position 0 predicts what follows the *first* token, and it cannot see anything behind it: attention looks
# back only (lesson 01). So its answer never changes, whatever is appended. **The test that would have caught it**:
# continue two prompts that begin alike and end differently; the continuations must differ.

# %% [markdown]
# ## What the report says
#
# | | | where |
# |---|---|---|
# | parameters, of them active per token | 671B, 37B | abstract, §4.2 |
# | tokens of pre-training | 14.8T | §4.1 |
# | GPU hours of the whole training (H800) | 2.788M, of them 2.664M for pre-training | Table 1 |
# | its price at an assumed 2 dollars an hour | 5.576M dollars | Table 1 |
# | what that price leaves out | earlier research and experiments on architecture, algorithms, data | §1 |
# | taken over from DeepSeek-V2 | latent attention, DeepSeekMoE | §2 |
# | new | balancing without an auxiliary loss, multi-token prediction, FP8 at this scale, DualPipe | §1 |
#
# The small model has the architecture of §2, not the training of §3 and §4: no FP8, one machine, minutes. Where it
# behaves differently, the lessons say so.

# %% [markdown]
# ## Recap
#
# * Text becomes tokens, tokens become logits, the last position's logits become the next token.
# * Each token goes to a few experts: in V3 most parameters rest while it passes.
# * Bits per byte on text that was held out says how good a model is, whatever its tokenizer.
#
# The whole course. What has a link is there already; the others are being built.

# %%
course = [
    ("Start here", "this tour"),
    ("Attention", "causal multi-head attention"),
    ("The KV cache", "prefill and decode; MHA, GQA, MQA"),
    ("Positions", "rotary positions, both layouts"),
    ("MLA", "latent attention with a key of its own for the position"),
    ("Absorption", "decoding inside the latent"),
    ("Mixture of experts", "gate, shared and routed experts"),
    ("Balance", "collapse, auxiliary loss, routing bias, node limit"),
    ("The whole model", "block, stack, parameter count"),
    ("Multi-token prediction", "the MTP module and its loss"),
    ("Data", "byte-level BPE, packing, fill-in-the-middle"),
    ("Train it", "schedule, optimizer, dashboard"),
    ("Speculative decoding", "draft with MTP, verify, roll back"),
    ("FP8", "8-bit floats in tiles and blocks, accumulation"),
    ("Kernels", "Triton: quantise, matrix products, decoding"),
    ("Long context", "YaRN, needle in a haystack"),
    ("Parallelism", "DualPipe, expert parallelism"),
    ("Post-training", "fine-tuning, GRPO, distillation"),
    ("Serving, cost, and what was claimed", "deployment, price, a check of claims"),
]
lines = ["| | lesson | you build |", "|---|---|---|"]
for number, (title, builds) in enumerate(course):
    here = sorted((repo_root() / "notebooks" / "src").glob(f"{number:02}_*.py"))
    link = f"[{title}]({here[0].stem}.ipynb)" if here else title
    lines.append(f"| {number:02} | {link} | {builds} |")
Markdown("\n".join(lines))

# %% [markdown]
# **Next:** [01 Attention](01_attention.ipynb), the part that lets tokens look at each other. It begins in the box
# *Pre-norm Transformer block* of the map.
