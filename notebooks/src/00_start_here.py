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
# *About 40 minutes. How a lesson works, the map of the course, and a small DeepSeek-V3 at work on text that you type.
# You need some Python; the PyTorch comes in lesson 01.*
#
# To run a cell, click it and press Shift+Enter. To run all of them: Run > Run All Cells.

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import math
    import re

    import matplotlib.pyplot as plt
    import torch
    from IPython.display import Markdown

    from dsv3_mini import InputError, ModelConfig, generate, load_pretrained
    from dsv3_mini.course import exercise, exhibit, predict, progress
    from dsv3_mini.course.grounding import FALSE_STATISTICS, SOURCE, number_grounding
    from dsv3_mini.course.idea_graph import load_idea_graph
    from dsv3_mini.course.lessons import LESSONS
    from dsv3_mini.course.number_grounding import ground_cells
    from dsv3_mini.generate.cache import LatentCache
    from dsv3_mini.model.count import count_parameters
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train.checkpoint import latest_checkpoint
    from dsv3_mini.train.corpus import embedded_corpus
    from dsv3_mini.train.evaluate import evaluate_model
    from dsv3_mini.train.tokenizer import Tokenizer
    from dsv3_mini.viz import style
    from dsv3_mini.viz.claims_table import ClaimsTable
    from dsv3_mini.viz.idea_graph_widget import IdeaGraph
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
# Here they are, with the links between them that the report speaks of. "Report" always means the DeepSeek-V3 Technical
# Report (arXiv 2412.19437); a sign like §2.1.1 is a section of it.

# %%
graph = IdeaGraph()
graph

# %% [markdown]
# *In words: a net of boxes joined by arrows. In the middle the Transformer block; from it arrows go to Multi-head
# Latent Attention, which shrinks the KV cache, to DeepSeekMoE, which the gate routes tokens into, and to Multi-Token
# Prediction. On the right stands what training costs, and what lowers it.*
#
# It is the map of the course. Walk in it for a few minutes:
#
# 1. Click a box. Its panel says what the idea is, where it stands in the report, and which lesson and which code build
#    it. (Drag to pan, scroll to zoom. By keyboard: arrow keys, Enter, Escape.)
# 2. Open *Speculative decoding*, then press **What do I need before this?**
# 3. Press **What a popular summary says**. The graph turns to its other face: the ideas and links of a well-meant
#    summary of the report, each link with a verdict. Open the one from *DeepSeekMoE Architecture* to *Multi-head Latent
#    Attention*. What is wrong with it?
#
# Then run the next cell: Python knows where you are.

# %%
print("face:", graph.face)
print("idea that is open:", graph.selected or "none")
print("link that is open:", graph.selected_link or "none")

# %% [markdown]
# It works in the other direction too: `graph.selected = "mla"` in a cell opens that box.
#
# How many links of the summary are wrong?

# %%
summary = load_idea_graph("summary")
verdicts = [link["verdict"] for _, _, link in summary.edges(data=True)]
print({verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))})
for start, end, link in summary.edges(data=True):
    if link["verdict"] == "wrong":
        print(
            f"\n{summary.nodes[start]['label']} -- {link['relation']} --> {summary.nodes[end]['label']}"
        )
        print(f"  {link['reason']} ({link['where']})")

# %% [markdown]
# ## What you will be able to do
#
# * Find your way: the map, the lessons, your progress.
# * Say what happens between a text that you type and the text that comes back, with the shapes.
# * Read a routing picture: which experts work on which token.
# * Tell total from active parameters, and a number that is in the source from a sentence that is true.
#
# ### How a lesson works
#
# * **Predict.** It asks before it tells. Guess, also when you are not sure; being surprised is how it sticks. Run all
#   cells without a guess, and nothing breaks.
# * **Exercises** are cells with a gap, each with a check below it that says *not attempted*, *right*, or what is wrong.
#   Stuck? `exercise("0.1").hint()` goes one step further each time; `exercise("0.1").solution()` shows a solution.
# * **The bug museum** shows mistakes that run without an error: say what you will see, run it, read the diagnosis.
# * **Your progress** is one small file, `progress.json`, at the top of the checkout: which exercises you tried and how
#   it went, how many hints you took, your guesses, the exhibits you saw. Your code is not in it. The map marks the
#   ideas whose exercises you got right, and `dsv3-mini progress` in a terminal prints it all. Delete the file to start
#   over.
# * **Nothing is sent.** Everything runs on this machine, and no lesson needs a network.
#
# Write your code right here, in the cells; the notebook saves it. Rebuilding the lessons refuses to overwrite a
# notebook that you edited.

# %% [markdown]
# ## Predict
#
# Three guesses. Choose or type, right in the cell's output; without buttons, write `guess_1.guess = ...` in a cell.

# %% tags=["predict"]
guess_1 = predict(
    "0.p1",
    "A token goes through the real model. What share of its 671 billion parameters works on it?",
    unit="%",
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "0.p2",
    "You type a sentence. In one layer of the small model, every token goes to a few of the experts. "
    "How are the tokens of the sentence spread over the experts?",
    choices={
        "a": "every expert gets about the same number of tokens",
        "b": "some experts get several times as many tokens as others",
        "c": "a few experts do all the work, most get nothing",
    },
)
guess_2

# %% tags=["predict"]
guess_3 = predict(
    "0.p3",
    "A page checks its own summary of the report with a program: a statement passes when its numbers "
    "occur in the source text. You hand it four false statements. How many does it stop?",
    choices={"a": "all four", "b": "some of them", "c": "none"},
)
guess_3

# %% [markdown]
# ## Build it
#
# ### The small model
#
# `nano` has every part of DeepSeek-V3, only narrower and fewer. It ships with the course, trained for some minutes on
# what every Python brings along: its own standard library, the documentation in it, and sums.

# %%
checkpoint = data_dir() / "checkpoints" / "nano"

try:
    folder = latest_checkpoint(checkpoint)
except InputError:
    raise InputError(
        "the trained model that ships in data/checkpoints/nano is missing. Run `make train` in a "
        'terminal (it takes minutes), then write here: checkpoint = data_dir().parent / "runs" / "nano"'
    ) from None
torch.set_grad_enabled(False)  # nothing is trained in this lesson
model = load_pretrained(folder, dtype=torch.float32)
tokenizer = Tokenizer.load(folder)
cfg = model.cfg
print(
    f"{cfg.num_hidden_layers} layers of width {cfg.hidden_size}, {cfg.vocab_size} different tokens"
)
print(f"{cfg.n_routed_experts} routed experts, {cfg.num_experts_per_tok} of them work on a token")

# %% [markdown]
# ### Text becomes tokens
#
# A model reads no letters. The tokenizer cuts a text into pieces that it has seen often, and gives each its number.

# %%
prompt = "def add(a, b):\n    return"  # yours: any text


def pieces(tokens):
    """Each token as a label: ␣ is a space, ⏎ a line break."""
    return [token_label(tokenizer.decode_bytes([token])) for token in tokens]


tokens = tokenizer.encode(prompt)
print(f"{len(prompt.encode())} bytes -> {len(tokens)} tokens")
for token, piece in zip(tokens, pieces(tokens), strict=True):
    print(f"{token:6}  {piece}")

# %% [markdown]
# ### Tokens become a guess about the next one
#
# The model gives, *for every position*, a score for each token that could come next: the **logits**. Here `B` is the
# number of texts, `T` of tokens, `V` the size of the vocabulary. Only the last position guesses something new.

# %%
logits = model(torch.tensor([tokens]), mtp=False).logits  # [B, T] -> [B, T, V]
print(f"tokens {[1, len(tokens)]} -> logits {list(logits.shape)}")

best = logits[0, -1].softmax(-1).topk(5)  # the last position, scores turned into probabilities
for probability, piece in zip(best.values.tolist(), pieces(best.indices.tolist()), strict=True):
    print(f"{probability:6.1%}  {piece}")

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
# It is a model that learned for minutes: it knows what Python *looks* like, and greedy text tends to run in circles.
#
# ### Inside: which experts work on a token
#
# Most layers hold a *mixture of experts*: many small networks side by side, and a *router* that sends each token to a
# few of them. The model can write down where it sent what.


# %%
def route(text):
    """The tokens of a text, and by layer the record of its routing: ids and weights, [1, T, K]."""
    tokens = tokenizer.encode(text)[:2048]  # very long texts are cut
    records = model(torch.tensor([tokens]), mtp=False, record_routing=True).routing
    return tokens, {record.layer: record for record in records}


tokens_read, by_layer = route(prompt)
for layer, record in by_layer.items():
    gates = zip(record.ids[0, -1].tolist(), record.weights[0, -1].tolist(), strict=True)
    experts = ", ".join(f"{expert} (weight {weight:.2f})" for expert, weight in sorted(gates))
    print(f"layer {layer}: the token '{pieces(tokens_read)[-1]}' goes to experts {experts}")

# %% [markdown]
# (The first layer is not in the list: it is dense, and has no experts to choose from.)
#
# ## Reveal
#
# **Guess 1.** The package counts from the configuration alone, without building anything. *Active* parameters are those
# that work on one token.


# %%
def table_row(name, *numbers):
    print(f"{name:18}" + "".join(f"{number:>18,}" for number in numbers))


real, small = count_parameters(ModelConfig.preset("v3-671b")), count_parameters(cfg)
print(f"{'':18}{'V3 total':>18}{'V3 active':>18}{'nano total':>18}{'nano active':>18}")
for a, b in zip(real.components, small.components, strict=True):
    table_row(a.name, a.total, a.active, b.total, b.active)
table_row("all", real.total, real.active, small.total, small.active)
share = 100 * real.active / real.total
guess_1.reveal(round(share, 1), f"one parameter in {real.total / real.active:.0f}.")

# %% [markdown]
# In V3 nearly all parameters sit in the routed experts, and a token uses 8 of 256 of them (§4.2). `nano` has fewer
# experts to choose from, so a larger share is active.
#
# **Guess 2.** Count the tokens that each expert gets.

# %%
sentence = "def area(r): return 3 * r * r  # The area of a circle. 12 + 30 = 42"

_, by_layer = route(sentence)
for number, record in by_layer.items():
    load = expert_load(record.ids, cfg.n_routed_experts)
    counts = " ".join(f"{count:3}" for count in load)
    print(f"layer {number}, tokens of each expert: {counts}   an even share: {load.mean():.1f}")
last = max(by_layer)
guess_2.reveal("b", f"in layer {last}, some get {load.max()} and some {load.min()}.")

# %% [markdown]
# One sentence is never even: few tokens, one subject. Balance is asked of whole batches (§4.5.3), and how V3 reaches it
# is the subject of lesson 07.
#
# **Guess 3.** The four statements and the reason why each is false are below; the source is a short text that has the
# numbers of the report's abstract.

# %%
score = number_grounding(FALSE_STATISTICS, SOURCE, whole_numbers=True)
for statement, why in FALSE_STATISTICS.items():
    print(f"{'passes' if score.passed[statement] else 'stopped':8} {statement:28} but {why}")
stopped = list(score.passed.values()).count(False)
guess_3.reveal("c", f"{stopped} of {len(score.passed)} are stopped.")

# %% [markdown]
# Every number is in the source, and every statement is false. **Numbers that match prove little.**
#
# That is why the lessons follow a stricter rule: a number in their text is printed by a cell close by, or it is on a
# list of facts with their places in the report, *and* the sentence names what the fact is about. A test holds all
# lessons to it. What does it make of the same four?

# %%
for statement in FALSE_STATISTICS:
    (finding,) = ground_cells([{"cell_type": "markdown", "source": f"{statement}."}])
    print(f"{'passes' if finding.by else 'stopped':8} {statement}")

# %% [markdown]
# Better, and not proof either: one gets through. The rule says where a number comes from. Whether a sentence is true,
# somebody has to judge who read the source; for the summary that was done claim by claim, further down.
#
# ## Check against the package
#
# Our loop read the whole text again for every new token. The package reads each token once and keeps what it needs of
# it in a *cache* (lesson 02 builds one). Faster, and the same:

# %%
(new,) = generate(model, [tokens], max_new_tokens=40)  # greedy, unless you ask for more
print(f"the same 40 tokens as our loop: {new == written[len(tokens) :]}")

cache = LatentCache(cfg, batch=1, max_len=len(written))
text = torch.tensor([written])
steps = [model(piece, cache=cache).logits for piece in text.split(1, dim=1)]  # one token at a time
difference = (torch.cat(steps, dim=1) - model(text, mtp=False).logits).abs().max()
print(f"max |diff| against reading the text as a whole: {difference:.1e} (tolerance 1e-04)")

# %% [markdown]
# Lines like this last one stand in every lesson: the largest difference between what you built and what the package
# has, and how much of it rounding may explain.
#
# ### How good is the model?
#
# A model that predicts well can store a text in few bits. **Bits per byte** on text that it has never read is the
# measure of this course; lower is better. Beside it, two rivals that know nothing of language: one counts which byte
# follows which three, the other is the file compressor xz. (This cell takes some seconds.)

# %%
corpus = embedded_corpus()
report = evaluate_model(model, tokenizer, corpus, seq_len=512, max_bytes=40_000)
domains = [*corpus.domains, "all"]
print(f"{'bits per byte':16}" + "".join(f"{domain:>8}" for domain in domains))
for key, name in (("bits_per_byte", "this model"), ("ngram", "counting"), ("xz", "xz")):
    print(f"{name:16}" + "".join(f"{report[key][domain]:8.2f}" for domain in domains))

# %% [markdown]
# ## Play
#
# Let it write. Drawing the next token by its probability reads better than greedy; `temperature` says how freely.

# %%
my_prompt = "class Stack:\n    def push(self, item):\n"  # yours

start = tokenizer.encode(my_prompt)
(new,) = generate(model, [start], max_new_tokens=60, temperature=0.8, top_p=0.95, seed=1)
print(tokenizer.decode(start + new))

# %% [markdown]
# Now the heart of the model. Type a sentence, choose a layer, run the cell.

# %%
my_sentence = sentence  # yours: any text in quotes
layer = 2  # yours: a layer with experts

ids, by_layer = route(my_sentence)
record = by_layer[layer]
draw_routing(
    pieces(ids),
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
#
# Do experts have a subject? Take more text, a kind at a time:

# %%
layer = max(by_layer)  # the last layer
figure, axes = plt.subplots(len(corpus.domains), 1, figsize=(7.2, 4.2), sharex=True, sharey=True)
for ax, domain in zip(axes, corpus.domains, strict=True):
    texts = "\n".join(document.text for document in corpus.heldout if document.domain == domain)
    ids, by_layer = route(texts[:20_000])
    load = expert_load(by_layer[layer].ids, cfg.n_routed_experts)
    ax.bar(range(len(load)), load / load.mean(), color=style.BLUE)
    ax.axhline(1, color=style.VERMILLION, linestyle="--", linewidth=1.4)
    ax.set_title(f"{domain}: {len(ids)} tokens", fontsize=10)
    busiest = [int(expert) for expert in load.argsort()[::-1][:3]]
    most = load.max() / load.mean()
    print(f"{domain:6} busiest experts {busiest}, up to {most:.1f} times the even share")
axes[-1].set(xlabel=f"routed expert of layer {layer}", xticks=range(len(load)))
axes[1].set_ylabel("load / even share")
plt.show()

# %% [markdown]
# *In words: three rows of bars, one for each kind of text, with the even share as a dashed line. The high bars stand at
# different experts in each row.*
#
# Experts specialise; nobody told them to. The report shows the same for models of 16 billion parameters, with
# Wikipedia, GitHub and mathematics (§4.5.3, Figure 9).

# %% [markdown]
# ## Exercises
#
# Write your answer in the first cell of a pair, run it, run the second. Do get one wrong on purpose, to see what a
# check says. Then scroll up to the map: the boxes of these exercises have changed.


# %% tags=["exercise"]
# Exercise 0.1 (3 minutes): from the loss that training prints to bits per byte.
def to_bits_per_byte(loss, tokens, text_bytes):
    """Mean loss in nats per token, number of tokens, number of bytes of a text -> bits per byte."""
    ...  # your code here


print(f"one nat is 1 / ln 2 = {1 / math.log(2):.3f} bits")


# %% tags=["check"]
# Stuck? exercise("0.1").hint(), and in the end exercise("0.1").solution()
exercise("0.1").check(to_bits_per_byte)

# %% tags=["exercise"]
# Exercise 0.2 (4 minutes): for each token V3 picks the 37 billion parameters that suit it best, one
# can read. Look at the table of guess 1: which share of the active ones is picked by the router?
chosen_share = ...  # your number, from 0 to 1, to three digits; `real` is the table

# %% tags=["check"]
# Stuck? exercise("0.2").hint(), and in the end exercise("0.2").solution()
exercise("0.2").check(chosen_share)


# %% tags=["exercise"]
# Exercise 0.3 (6 minutes): several texts at once. Short texts are filled up on the right, so that
# all rows of the batch have T places. Give the best next token of each text.
def next_tokens(logits, lengths):
    """Scores [B, T, V] and a list of B lengths (the filling not counted) -> B tokens, as a list."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("0.3").hint(), and in the end exercise("0.3").solution()
exercise("0.3").check(next_tokens)

# %% [markdown]
# The last one needs a tool: a pattern that finds the numbers in a text.

# %%
NUMBER = r"\d+(?:\.\d+)?"  # digits, perhaps with a point and more digits
print(re.findall(NUMBER, "It read 14.8T tokens and has 671B parameters."))


# %% tags=["exercise"]
# Exercise 0.4 (6 minutes): the check of the page, done properly. True if the statement has numbers,
# and each of them occurs in the source as a number of its own: "671B" has the number 671, not 6.
def is_grounded(statement, source):
    """Two texts -> True or False."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("0.4").hint(), and in the end exercise("0.4").solution()
exercise("0.4").check(is_grounded)

# %% [markdown]
# ## Bug museum
#
# Real mistakes that run without an error.
#
# ### Exhibit 0.A: the wrong position
#
# The line below is right, as long as texts come one at a time.

# %%
exhibit("0.A").show()

# %% tags=["predict"]
exhibit("0.A").predict()

# %%
exhibit("0.A").run()

# %%
exhibit("0.A").diagnose()

# %% [markdown]
# ### Exhibit 0.B: digits that match

# %%
exhibit("0.B").show()

# %% tags=["predict"]
exhibit("0.B").predict()

# %%
exhibit("0.B").run()

# %%
exhibit("0.B").diagnose()

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
#
# And what does the popular summary say? Here are its claims, in our words, with a verdict, the reason, and the place in
# the report where you can see for yourself. Filter them: which are faithful? What does it say of the *cost*?

# %%
ClaimsTable(verdict="wrong")

# %% [markdown]
# ## Recap
#
# * Text becomes tokens, tokens become logits, the last position's logits become the next token.
# * Each token goes to a few experts: in V3 most parameters rest while it passes.
# * Bits per byte on text that was held out says how good a model is, whatever its tokenizer.
# * That a number occurs in the source says little about the sentence around it.
#
# What you did so far, as your progress file has it (opening it in Lab is fine too):

# %%
done = progress.read()
right = sum(entry["state"] == "right" for entry in done.exercises.values())
print(f"{len(done.exercises)} exercises tried, {right} of them right")
print(f"{len(done.predictions)} guesses made, {len(done.exhibits)} exhibits seen")

# %% [markdown]
# The whole course. What has a link is there already; the others are being built.

# %%
lines = ["| | lesson | you build |", "|---|---|---|"]
for entry in LESSONS:
    title = f"[{entry.title}]({entry.file})" if entry.notebook else entry.title
    lines.append(f"| {entry.number} | {title} | {entry.builds} |")
Markdown("\n".join(lines))

# %% [markdown]
# **Next:** [01 Attention](01_attention.ipynb), the part that lets tokens look at each other. It begins in the box
# *Pre-norm Transformer block* of the map.
