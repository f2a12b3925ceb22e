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
# # 12 Speculative decoding
#
# *About an hour with the exercises. You need [02 The KV cache](02_kv_cache.ipynb) and
# [09 Multi-token prediction](09_mtp.ipynb). This lesson lets the module of lesson 09 write drafts, and the model check
# several of them in one step.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import time

    import matplotlib.pyplot as plt
    import torch

    from dsv3_mini import ModelConfig, load_pretrained
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.course.facts import load_facts
    from dsv3_mini.generate.cache import LatentCache
    from dsv3_mini.generate.decode import generate
    from dsv3_mini.generate.fast import fast
    from dsv3_mini.generate.speculative import SpeculationStats, accept_sampled
    from dsv3_mini.model.count import count_parameters
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train.data import load_corpus
    from dsv3_mini.train.tokenizer import Tokenizer
    from dsv3_mini.viz import style
    from dsv3_mini.viz.idea_graph import draw_idea_graph
    from dsv3_mini.viz.speculation_strip import SpeculationStrip
except ModuleNotFoundError as missing:
    raise ImportError(
        f"this kernel has no module {missing.name!r}: it is not the kernel of the course. "
        "Start the lessons with `make lab`, and choose Kernel > Change Kernel > Python 3 (ipykernel)."
    ) from None
style.use()
torch.set_grad_enabled(False)  # nothing is trained in this lesson
torch.manual_seed(0)
print("ready")

# %% [markdown]
# ## The question
#
# To write a text, a model takes a step for each token, and each step waits for the one before. To *read* a text it
# takes one step for all tokens, and in that step it says at every place what it would have written next.

# %%
folder = data_dir() / "checkpoints" / "nano"
model, tokenizer = load_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder)
text = tokenizer.encode("def __init__(self, name):\n        self.name = name\n")
logits = model(torch.tensor([text]), mtp=False).logits[0]  # [T, V]
said = logits.argmax(-1).tolist()
print("read          the model would have written")
for token, other in zip(text[1:], said):
    shown = [repr(tokenizer.decode([t])) for t in (token, other)]
    print(f"{shown[0]:14}{shown[1]:14}{'the same' if token == other else ''}")

# %% [markdown]
# Look at the rows that say "the same". Had somebody whispered these tokens to the model, it could have *checked* them,
# all in this one step, in place of writing them one by one.
#
# **Who could whisper? And if a whispered token is wrong, what does it cost, and what must be cleaned up?**
#
# Before you read on: a step of decoding reads every weight that the token needs and uses it for one token. Is a step
# for two tokens as cheap as a step for one? Think of attention, of the experts, of the output head.

# %% [markdown]
# ## What you will be able to do
#
# * Write a round of speculative decoding: draft, verify, accept, bonus token, roll back.
# * Say why greedy decoding with drafts writes the same text, and test it.
# * Draw tokens with drafts so that they keep the model's distribution, and notice when they do not.
# * Read an acceptance rate: of which drafts, on which text, at which temperature.
# * Compute when drafts pay, for a small model, for a deep one, and for a mixture of experts.
# * Recognise two bugs: one wastes all drafts, the other lets them haunt the text.

# %% [markdown]
# ## Predict

# %% tags=["predict"]
guess_1 = predict(
    "12.p1",
    "In nano each token is sent to 4 of 16 routed experts. Two neighbouring tokens of a text go through a layer "
    "together. How many different experts do they need, on average?",
    unit="experts",
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "12.p2",
    "The shipped nano goes on with held-out Python code, greedily. Its module drafts one token in each round. How many "
    "percent of the drafts are accepted?",
    unit="%",
)
guess_2

# %% tags=["predict"]
guess_3 = predict(
    "12.p3",
    "DeepSeek-V3 continues B texts at once and makes one draft for each. Count only the weights that a step has to "
    "read. Where do drafts gain the most?",
    choices={
        "a": "at B = 1: all weights are read for one token, and a second one comes along",
        "b": "anywhere: it is the same gain for every B",
        "c": "at B in the hundreds",
    },
)
guess_3

# %% tags=["predict"]
guess_4 = predict(
    "12.p4",
    "Now by the clock: nano writes a text on this machine, with one draft in a round and without drafts.",
    choices={
        "a": "with drafts it is more than 10 % faster",
        "b": "the two are within 10 %",
        "c": "with drafts it is more than 10 % slower",
    },
)
guess_4

# %% [markdown]
# ## Build it
#
# ### Plain decoding, and its count
#
# Two functions are all we need of the model. `step` is one forward pass: the tokens go through the model and into the
# cache. `says` asks the output head.
#
# Shapes: `T` tokens of one pass, `D` width, `V` vocabulary.


# %%
def step(tokens, cache):
    """A list of T tokens -> their states [T, D]. One forward pass; the tokens go into the cache."""
    return model.hidden_states(torch.tensor([tokens]), cache)[0]


def says(states):
    """states [T, D] -> for each of them the most likely next token."""
    return model.lm_head(states).argmax(-1).tolist()


def plain(prompt, new):
    """Greedy decoding as in lesson 02: the new tokens, and the number of steps after the prompt."""
    cache = LatentCache(model.cfg, 1, len(prompt) + new)
    text, steps = says(step(prompt, cache)[-1:]), 0
    while len(text) < new:
        text += says(step(text[-1:], cache))
        steps += 1
    return text, steps


prompt = tokenizer.encode("import os\n\n\ndef read(path):\n")
without_drafts, steps = plain(prompt, 40)
print(tokenizer.decode(without_drafts))
print(f"\n{len(without_drafts)} tokens in {steps} steps; the first came with the prompt")

# %% [markdown]
# nano is a small model and no great writer. What matters here is that it always says the same.
#
# ### The draft
#
# Lesson 09 in one line: at position $i$ the module has the state $\mathbf h_i$ of the main model, is given the token
# $t_{i+1}$, and predicts $t_{i+2}$. When the model has just chosen a token, state and token are both there, and the
# module can say which one comes behind it. Like any block it attends to its past, so it has a cache of its own.

# %%
module, layers = model.mtp_modules[0], model.cfg.num_hidden_layers


def caches(room):
    """One for the layers of the main model, one for the block of the module."""
    own = LatentCache(model.cfg, 1, room, layers=range(layers, layers + 1))
    return LatentCache(model.cfg, 1, room), own


def read_along(states, following, own):
    """States h_i [T, D] and the T tokens that follow them -> states of the module [T, D]."""
    cos, sin = model.model.rotary(own.begin(len(following)))
    embedded = model.model.embed_tokens(torch.tensor([following]))
    out, _ = module.predict(embedded, states[None], cos, sin, own)
    own.commit()
    return out[0]


cache, own = caches(100)
states = step(prompt, cache)  # h_1 .. h_T
newest = says(states[-1:])[0]  # t_{T+1}, chosen from h_T
guess = says(read_along(states, [*prompt[1:], newest], own)[-1:])[0]
print("the model has chosen", repr(tokenizer.decode([newest])))
print("the module drafts   ", repr(tokenizer.decode([guess])))
print(f"in the caches: {cache.lengths[0]} tokens (model), {own.lengths[0]} (module)")

# %% [markdown]
# The module has seen one token more than the model: it was *given* the newest one, which the model has not read yet.
#
# ### Verify
#
# Now the step that pays for itself, or does not. The model has to read the newest token anyway. Let it read the draft
# behind it in the same pass. That gives two rows of logits. Which row judges the draft?

# %%
before = cache.lengths[0]
states = step([newest, guess], cache)  # [2, D], one forward pass
wanted = says(states)
for token, word in zip((newest, guess), wanted):
    print(f"behind {tokenizer.decode([token])!r:8} the model says {tokenizer.decode([word])!r}")
print(f"draft {tokenizer.decode([guess])!r}:", "accepted" if guess == wanted[0] else "rejected")

# %% [markdown]
# The row *at the newest token* judges the draft, for there the model says what it wants next. The row at the draft says
# what comes after the draft, and that is worth something only if the draft stays.
#
# * **Rejected**: the first row's token is written in place of the draft. One token, as without drafts.
# * **Accepted**: the draft is written, and the second row's token too. Two tokens from one pass.
#
# So a round always gives one token that the model itself has said. It is called the **bonus token**.
#
# ### Roll back
#
# Here the draft was wrong, and it stands in the cache, in every layer. Everything that comes would attend to it.

# %%
kept = int(guess == wanted[0])
print(f"{cache.lengths[0]} tokens in the cache, of which {1 - kept} does not belong to the text")
cache.crop([before + 1 + kept])
print(f"after the crop: {cache.lengths[0]}")

# %% [markdown]
# The slots are not cleared; the cache only forgets that they are taken, and the next token is written over them. That
# is why rolling back costs nothing. (With a cache of keys and values for all heads it would be the same.)
#
# And the module's cache? It holds what was computed from true states and true tokens, so nothing has to go. What it
# lacks are the tokens of this round, and it reads them at the start of the next one.
#
# ### The whole loop


# %%
def speculative(prompt, new):
    """Greedy decoding with one draft in a round: the new tokens, and for each round how many drafts were kept."""
    cache, own = caches(len(prompt) + new + 2)
    states = step(prompt, cache)
    text, rounds = says(states[-1:]), []
    following = [*prompt[1:], *text]  # the tokens behind the states that the module has not read
    while len(text) < new:
        guess = says(read_along(states, following, own)[-1:])[0]  # draft
        before = cache.lengths[0]
        states = step([text[-1], guess], cache)  # verify
        wanted = says(states)
        kept = int(guess == wanted[0])  # accept
        cache.crop([before + 1 + kept])  # roll back
        following = [guess, wanted[1]] if kept else [wanted[0]]
        states = states[: kept + 1]
        text += following
        rounds.append(kept)
    return text[:new], rounds


with_drafts, rounds = speculative(prompt, 40)
print("the same text:", with_drafts == without_drafts)
print(f"{steps} steps without drafts, {len(rounds)} rounds with")
print(f"drafts accepted: {sum(rounds)} of {len(rounds)}, that is {sum(rounds) / len(rounds):.0%}")

# %% [markdown]
# The same text is not luck. Each token that stays is either what the model said, or a draft that equals what the model
# said. The module decides only how *fast* the text comes. A module that drafts nonsense gives the same text, slowly.
#
# One caveat, and it is the only one: two tokens in one pass are added up in another order than one by one, so the
# logits differ in their last digits. Where two tokens are as good as equally likely, that may tip the choice. On the
# shipped models in fp64 the package's test demands equality for a hundred prompts, see
# `tests/generate/test_speculative.py::test_shipped_models_write_the_same_with_and_without_drafts`.
#
# ### More drafts
#
# V3 has one module, of depth 1. To draft a second token one would need the state $\mathbf h$ at the first draft, and
# the model has not read that yet. But the module has a state there, its own. Use it as if it were the model's, and go
# on.


# %%
def chain(states, following, own, drafts):
    """That many drafts in a row, each from the module's own state at the one before."""
    state = read_along(states, following, own)[-1:]
    length, guesses = own.lengths[0], says(state)
    while len(guesses) < drafts:
        state = read_along(state, guesses[-1:], own)
        guesses += says(state)
    own.crop([length])  # what came from the module's own states is read anew in the next round
    return guesses


cache, own = caches(100)
states = step(prompt, cache)
text = says(states[-1:])
guesses = chain(states, [*prompt[1:], *text], own, 4)
print("four drafts:      ", [tokenizer.decode([token]) for token in guesses])
print("what comes really:", [tokenizer.decode([token]) for token in without_drafts[1:5]])

# %% [markdown]
# From here on the package does the rounds: `generate(..., speculative=2)` makes up to two drafts in each. Let us ask
# how often a draft is accepted, on the beginnings of documents that nano has never seen, and at each depth. A draft
# behind a rejected one is not judged at all, so it does not count.

# %%
corpus = load_corpus()  # the text that nano learned from, and what was held out of it
prompts = {}
for domain in ("code", "prose", "math"):
    starts = [tokenizer.encode(d.text[:1500]) for d in corpus.heldout if d.domain == domain]
    prompts[domain] = [start[:64] for start in starts if len(start) >= 64][:20]


def measure(domain, drafts, **options):
    """20 prompts, 48 tokens behind each: how the drafts fared."""
    stats = SpeculationStats()
    generate(model, prompts[domain], 48, speculative=drafts, stats=stats, seed=0, **options)
    return stats


print(f"{'greedy':10}{'rounds':>8}   accepted, of those that were judged")
found = {domain: measure(domain, 4) for domain in prompts}
for domain, stats in found.items():
    shares = "   ".join(f"{d}: {k / m:4.0%}" for d, (m, k) in enumerate(stats.by_depth, start=1))
    print(f"{domain:10}{stats.row_rounds:8,}   {shares}")

# %% [markdown]
# Behind the first draft the module walks on its own state, which it was never trained to do. Compare the first column
# with the second. (In arithmetic the
# columns jump: those texts follow a pattern, and the depth decides at which place of it a draft falls.)
#
# If a draft is accepted with chance $a$, whatever its depth, a round with $k$ drafts gives $1 + a + a^2 + \dots + a^k$
# tokens. With the chances of each depth, it is $1 + a_1 + a_1 a_2 + \dots$ (exercise 9.5). Which of them does nano
# obey?

# %%
depths = range(5)
counted = [1.0] + [measure("code", depth).tokens_per_forward for depth in depths[1:]]
first = found["code"].acceptance
by_depth = [kept / made for made, kept in found["code"].by_depth]
constant = [sum(first**j for j in range(depth + 1)) for depth in depths]
each = [
    1.0 + sum(torch.tensor(by_depth[:j]).prod().item() for j in range(1, depth + 1))
    for depth in depths
]

figure, ax = plt.subplots()
lines = {"counted": counted, "every depth its own": each, "every depth like the first": constant}
for (name, values), (colour, line, marker) in zip(lines.items(), style.STYLES):
    ax.plot(depths, values, color=colour, linestyle=line, marker=marker, label=name)
    print(f"{name:28}", "  ".join(f"{value:.2f}" for value in values))
ax.set(xlabel="drafts in a round", ylabel="tokens per round", xticks=depths, ylim=(0.8, None))
ax.set_title("What a further draft adds")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# *In words: three lines that begin at one token and rise with the number of drafts. The counted one and the one with a
# chance for each depth stay close together and bend; the one that takes every depth to be like the first runs above.*
#
# ### Drawing tokens instead of taking the best
#
# At a temperature the model *draws* from a distribution $p$, and the module from its own, $q$. "The same token" no
# longer makes sense: two draws from the same distribution differ as well. What must stay is the distribution of what
# comes out. Take a vocabulary of five and do the accounts.

# %%
p = torch.tensor([0.50, 0.20, 0.15, 0.10, 0.05])  # what the model wants
q = torch.tensor([0.30, 0.40, 0.10, 0.05, 0.15])  # what the module drafts
common = torch.minimum(p, q)
missing = p - common
print("p      ", " ".join(f"{x:5.2f}" for x in p.tolist()))
print("q      ", " ".join(f"{x:5.2f}" for x in q.tolist()))
print("common ", " ".join(f"{x:5.2f}" for x in common.tolist()), f"  together {common.sum():.2f}")
print("missing", " ".join(f"{x:5.2f}" for x in missing.tolist()), f"  together {missing.sum():.2f}")

# %% [markdown]
# Token 1 is drafted too often. Accept it only with chance $p/q$, half of the time, and it comes as often as it should.
# Token 0 is drafted too rarely, so it is always accepted, and something is still missing. So the rule (Leviathan et
# al., 2023) is:
#
# * accept a draft $x$ with chance $\min(1, p(x)/q(x))$: then the *common* part of both comes out;
# * if it is rejected, draw from what is *missing*, rescaled.
#
# A draft is accepted as often as the two have in common: the sum of the row `common`. Now test it, beside two rules
# that look as reasonable: after a rejection draw from $p$ itself; or draw from both and accept if they agree.

# %%
generator = torch.Generator().manual_seed(1)
N = 100_000


def draw(weights):
    return torch.multinomial(weights, N, replacement=True, generator=generator)


def with_rule(instead):
    """N tokens by the rule; a rejected draft gives way to a draw from `instead`."""
    drafts = draw(q)
    accepted = torch.rand(N, generator=generator) < (p / q)[drafts]
    return torch.where(accepted, drafts, draw(instead)), accepted


def chi_square(tokens):
    """How far the counts are from N p. For five tokens about 4 by chance alone, seldom above 18."""
    counts = torch.bincount(tokens, minlength=len(p))
    return ((counts - N * p) ** 2 / (N * p)).sum().item()


right, accepted = with_rule(missing)
both, ours = draw(q), draw(p)
agreed = both[both == ours]
trials = {
    "drawn from p, no drafts": draw(p),
    "the rule": right,
    "instead from p": with_rule(p)[0],
    "only if they agree": torch.cat((agreed, draw(p)))[:N],
}
for name, tokens in trials.items():
    shares = torch.bincount(tokens, minlength=5) / len(tokens)
    print(
        f"{name:25}",
        " ".join(f"{s:.3f}" for s in shares.tolist()),
        f"  chi-square {chi_square(tokens):9,.1f}",
    )
print(f"accepted {accepted.float().mean():.3f}, in common {common.sum():.3f}")

# %% [markdown]
# The two wrong rules are off by a little in every token. No text would look strange; only a count shows it. That is why
# such a rule needs a test that counts.
#
# Mind what acceptance means here. The module need not *know* the next token; it is enough to be as unsure as the model.
# Compare the domains at temperature 1 with those above:

# %%
print(f"{'temperature 1':15}{'rounds':>8}   first drafts accepted")
for domain in prompts:
    stats = measure(domain, 1, temperature=1.0)
    print(f"{domain:15}{stats.row_rounds:8,}   {stats.acceptance:.0%}")

# %% [markdown]
# ### What a second token costs
#
# A round has two costs: a pass over two tokens in place of one, and the draft. In attention, the shared expert and the
# head, a second token uses weights that are read already. Routed experts are another matter: each token brings its own.

# %%
some = torch.tensor(prompts["code"])  # [20, 64]
routing = model(some, record_routing=True, mtp=False).routing
print("different experts that neighbouring tokens need, of 16:")
by_chance = [16 * (1 - (1 - 4 / 16) ** n) for n in (1, 2, 3)]
print("1, 2, 3 tokens, by chance:", " ".join(f"{x:.1f}" for x in by_chance))
per_layer = {}
for record in routing:
    ids = record.ids.view(20, 64, -1)  # [B, T, K]
    for n in (1, 2, 3):
        runs = [ids[b, i : i + n].flatten() for b in range(20) for i in range(64 - n)]
        per_layer[record.layer, n] = sum(len(run.unique()) for run in runs) / len(runs)
    means = " ".join(f"{per_layer[record.layer, n]:.1f}" for n in (1, 2, 3))
    print(f"1, 2, 3 tokens, layer {record.layer}:  {means}")

# %% [markdown]
# Neighbours share hardly more experts than strangers would. So two tokens read well over half as many weights of
# experts again as one. Let us time it, together with the draft: a step of one token is the
# unit. (The quickest of many tries, because other programs only ever make a try slower.)

# %%
engine = fast(model)  # the model with its weights prepared for small steps: what `generate` uses
cache, own = caches(128)
ids = prompts["code"][0]
states = engine.hidden_states(torch.tensor([ids]), cache)
engine.draft_states(torch.tensor([ids[1:]]), states[:, :-1], own)


def verifying(drafts):
    model.lm_head(engine.hidden_states(torch.tensor([ids[: drafts + 1]]), cache))
    cache.crop([64])


def drafting():
    """As after an accepted draft: the module first reads the two tokens that it has not read yet."""
    model.lm_head(engine.draft_states(torch.tensor([ids[:2]]), states[:, -2:], own)[:, -1])
    own.crop([63])


def quickest(calls, tries=60):
    """Seconds of the quickest try of each call; they take turns, so that all meet the same machine."""
    found = [[] for _ in calls]
    for _ in range(tries):
        for call, seconds in zip(calls, found):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
    return [min(seconds) for seconds in found]


*passes, drafted = quickest([*(lambda k=k: verifying(k) for k in range(5)), drafting])
verify = [seconds / passes[0] for seconds in passes]
draft = drafted / passes[0]
print("cost of a pass over a token and 0 to 4 drafts:", " ".join(f"{cost:.2f}" for cost in verify))
print(f"cost of making a draft: {draft:.2f}")

# %% [markdown]
# ### Break-even
#
# $$\text{speed-up} = \frac{\text{tokens per round}}{\text{cost of verifying} + \text{cost of drafting}}$$
#
# With one draft, the tokens per round are $1 + a$, and drafts pay when $a$ is above the *extra* cost: what verifying
# costs beyond a plain step, plus the draft.

# %%
print("on this machine, for nano on code:")
for k in range(1, 5):
    cost = verify[k] + k * draft
    print(
        f"  drafts: {k}, tokens: {each[k]:.2f}, cost: {cost:.2f} steps, gain: {each[k] / cost:.2f}"
    )
print(f"  one draft pays above an acceptance of {verify[1] + draft - 1:.2f}; nano has {first:.2f}")

# %% [markdown]
# Why is the draft so dear? The module is one block, with the head used again, and nano has three layers. Keep the
# layers of nano and stack more of them; count weights that are read, for one token and for two, with the experts as
# measured above. Then no clock is needed.

# %%
count = count_parameters(model.cfg)
moe_layers = model.cfg.num_hidden_layers - model.cfg.first_k_dense_replace
experts = count["routed experts"].active / moe_layers  # weights of 4 experts of one layer
# For two tokens so many times as much, as measured above.
more = sum(per_layer[record.layer, 2] for record in routing) / len(routing) / 4
head = count["output head"].active
active = {row.name: row.active for row in count.mtp}
# One layer with experts: the module without what joins state and token.
block = count.mtp_active - active["joining projection"] - active["MTP norms"]
rest = count.active_without_embedding - moe_layers * block  # dense layer and head


def draft_pays_above(layers):
    """The acceptance from which one draft reads fewer weights a token, in nano with so many layers."""
    one = rest + (layers - 1) * block
    two = one + (layers - 1) * experts * (more - 1)
    return (two + count.mtp_active + head) / one - 1


for deep in (3, 8, 16, 32, 61):
    print(f"{deep:3} layers: one draft pays above an acceptance of {draft_pays_above(deep):.2f}")

# %% [markdown]
# (By the clock a small model may pay more for a draft than this count says: its time goes into starting operations,
# and a draft starts as many as a layer.) Two forces. The draft costs one layer and a head, so its share falls with
# depth. What remains is the price of the second token's own experts, and depth does not help against it. A shallow MoE
# can win steps and lose time, and that is no fault of the method.

# %% [markdown]
# ## Reveal

# %%
two = sum(per_layer[record.layer, 2] for record in routing) / len(routing)
guess_1.reveal(round(two, 1), "mean over the layers with experts, on held-out code")

# %%
stats = measure("code", 1)
guess_2.reveal(
    round(100 * stats.acceptance, 1), f"of {stats.row_rounds:,} drafts, counted over all prompts"
)

# %% [markdown]
# The third question, for V3. A step for B texts reads the weights that every token needs, once, and of the routed
# experts those that anybody needs. Suppose that tokens choose their experts independently and evenly, 8 of 256. Then
# the share of experts that $n$ tokens need together is $1 - (1 - 8/256)^n$.

# %%
v3 = ModelConfig.preset("v3-671b")
sizes = count_parameters(v3)
routed = sizes["routed experts"]
always = sizes.active_without_embedding - routed.active  # what every token needs

# The module: what every token needs, with the head once more, and its routed experts.
own_routed = next(row for row in sizes.mtp if row.name == "routed experts")
own_always = sizes.mtp_active - own_routed.active + sizes["output head"].active


def read(tokens, fixed, experts):
    """Weights that a pass over so many tokens reads."""
    share = 1 - (1 - v3.num_experts_per_tok / v3.n_routed_experts) ** tokens
    return fixed + share * experts.total


def gain(B, acceptance):
    """Tokens per weight read, with one draft for each of B texts, against none."""
    with_draft = read(2 * B, always, routed) + read(2 * B, own_always, own_routed)
    return (1 + acceptance) * read(B, always, routed) / with_draft


for B in (1, 4, 64, 256):
    one, two = (read(tokens, always, routed) / 1e9 for tokens in (B, 2 * B))
    print(
        f"B = {B:3}: a pass over one token each reads {one:3.0f}B weights, over two each {two:3.0f}B"
    )

# %% [markdown]
# With the acceptance that the report gives (§5.4.3), what is the gain?

# %%
acceptance = next(fact.values for fact in load_facts() if fact.id == "mtp_acceptance")  # percent
batches = [2**i for i in range(10)]
figure, ax = plt.subplots()
for percent, (colour, line, marker) in zip(acceptance, style.STYLES):
    gains = [gain(B, percent / 100) for B in batches]
    name = f"acceptance {percent:g} %"
    ax.plot(batches, gains, color=colour, linestyle=line, marker=marker, label=name)
    print(
        f"{name}:",
        "  ".join(f"B = {B}: {g:.2f}" for B, g in zip(batches, gains) if B in (1, 4, 64, 256)),
    )
ax.set_xscale("log", base=2)
ax.set_xticks(batches, [str(B) for B in batches])
ax.set(xlabel="texts in a step (B)", ylabel="gain by weights read", ylim=(1, 2))
ax.set_title("V3: a second token is nearly free only in a crowd")
ax.legend(loc="upper left")
plt.show()
best = max(batches, key=lambda B: gain(B, acceptance[0] / 100))
answer = "c" if best >= 100 else "a"
guess_3.reveal(answer, f"of those that were tried, the most at B = {best}")

# %% [markdown]
# *In words: two lines close together. They begin a little above 1 for one text, sink towards 1 while a few more
# share a step, and from some dozens on climb steeply to a level not far below 2.*
#
# Alone, the second token brings its own experts. In a crowd all experts are read anyhow, and it brings nothing new.
# This counts weights only. The cache of each text is read too, and with hundreds of tokens an expert has so much to
# compute that reading is no longer the whole cost; both pull the right end down. In a *dense* model there are no
# experts to bring, and a single text gains at once.

# %%
short, new = [prompts["code"][0]], 80


stats = SpeculationStats()
generate(model, short, new, speculative=1, stats=stats)
ways = [{}, {"speculative": 1}]
calls = [lambda n=n, way=way: generate(model, short, n, **way) for way in ways for n in (1, new)]
prefill, whole, prefill_drafts, whole_drafts = quickest(calls, tries=4)
speed_up = (whole - prefill) / (whole_drafts - prefill_drafts)
expected = stats.tokens_per_forward / (verify[1] + draft)
print(f"{stats.tokens_per_forward:.2f} tokens per round", end="; ")
print(f"speed-up by the formula {expected:.2f}, by the clock {speed_up:.2f}")
answer = "a" if speed_up > 1.1 else ("c" if speed_up < 0.9 else "b")
guess_4.reveal(answer, f"with one draft {speed_up:.2f} times as fast as without, on this machine")

# %% [markdown]
# (The formula knows the passes and the drafts only. Comparing, cropping and keeping accounts take time, too, and in a
# model as small as nano that shows. The prompt is not counted.)
#
# Three numbers that are easily taken for each other: the acceptance, the tokens per round, the speed-up by the clock.
# Only the last one is what somebody waits for, and only the first two belong to the model and not to the machine.

# %% [markdown]
# ## Check against the package
#
# The loop from above against `generate`, and a pass over two tokens against two passes.

# %%
log = []
package = generate(model, [prompt], 40, speculative=1, on_round=log.append)[0]
difference = max(abs(a - b) for a, b in zip(with_drafts, package, strict=True))
print(f"max |diff| against generate with one draft, token ids: {difference} (tolerance 0)")
difference = max(abs(a - done.accepted) for a, done in zip(rounds[:-1], log))
print(f"max |diff| against its rounds, drafts accepted: {difference} (tolerance 0)")

together, apart = caches(100)[0], caches(100)[0]
step(prompt, together), step(prompt, apart)
pair = without_drafts[:2]
both = model.lm_head(step(pair, together))
single = model.lm_head(torch.cat([step([token], apart) for token in pair]))
print(
    f"max |diff| against two passes of one token, logits: {(both - single).abs().max():.1e} (tolerance 1e-04)"
)

# %% [markdown]
# (The last round is left out of the second line: `generate` knows how many tokens are wanted and makes no draft for a
# single one.) And the sampling rule, against the accounts from above:

# %%
rows = 50_000
ps, qs = p.expand(rows, 2, -1), q.expand(rows, 1, -1)
drafts = torch.multinomial(q, rows, replacement=True, generator=generator)[:, None]
kept, after = accept_sampled(ps, qs, drafts, generator)
first_tokens = torch.where(kept == 1, drafts[:, 0], after)
shares = torch.bincount(first_tokens, minlength=5) / rows
print("accept_sampled gives", " ".join(f"{s:.3f}" for s in shares.tolist()))
print("wanted              ", " ".join(f"{s:.3f}" for s in p.tolist()))

# %% [markdown]
# ## Play
#
# Each group of boxes is one forward pass of the model. A check is an accepted draft, a cross a rejected one, a plus the
# bonus token. Press *Play*, or step with the arrow keys. Then type a prompt of your own, choose how many drafts a round
# makes, and press *Decode*. Where are drafts easy, and where does the module stumble?

# %%
strip = SpeculationStrip(
    model, tokenizer, "import os\n\n\ndef read(path):\n", depth=2, new_tokens=40
)
strip

# %% [markdown]
# *In words: the lines above the picture. Crosses stand where the text has a choice, such as a name or the end of a list
# of parameters; within words and common phrases there are checks.*
#
# Should a round make drafts at all when the module is unsure? `confidence=c` ends the drafts of a round where the
# module's own probability for all drafts so far has fallen below c. Acceptance rises, and rounds give fewer tokens.
# Watch both columns, and find the value that suits the costs of your machine.

# %%
print("confidence   first drafts made   accepted   tokens per round")
for confidence in (0.0, 0.1, 0.2, 0.4, 0.6):
    stats = SpeculationStats()
    for one in prompts["code"][:4]:
        generate(model, [one], 32, speculative=2, confidence=confidence, stats=stats)
    made = stats.by_depth[0][0] if stats.by_depth else 0
    print(f"{confidence:10}{made:20,}{stats.acceptance:11.0%}{stats.tokens_per_forward:19.2f}")

# %% [markdown]
# One trap: when tokens are drawn, whether to draft must be decided *before* the draft is drawn, from the distribution.
# Whoever draws first and then drops drafts that look unlikely removes unlikely tokens from the text.

# %% [markdown]
# ## Exercises
#
# Write your code in the cell that opens with `# Exercise`, run it, then run the cell under it.


# %% tags=["exercise"]
# Exercise 12.1 (8 minutes): the tokens that a round gives, from one pass over the whole text and its drafts, no cache.
def new_tokens(logits, text, drafts):
    """logits [T + k, V], at each token of the text and behind it each of k drafts; text: T ids; drafts: k ids
    -> list of ids: the accepted drafts, and the bonus token."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("12.1").hint(), and in the end exercise("12.1").solution()
exercise("12.1").check(new_tokens)

# %% [markdown]
# The same with a cache. `forward(tokens, cache)` reads a list of tokens into the cache and gives logits, one row for
# each of them. The cache has `cache.lengths`, a list with one number, and `cache.crop([length])`.


# %% tags=["exercise"]
# Exercise 12.2 (12 minutes): one whole round, after which the cache holds what belongs to the text and is read.
def one_round(forward, cache, newest, drafts):
    """newest: the last token of the text, not in the cache yet; drafts: list of k ids, k may be any number
    -> list of ids: the accepted drafts, and the bonus token."""
    ...  # your code here


# %% tags=["check"]
exercise("12.2").check(one_round)


# %% tags=["exercise"]
# Exercise 12.3 (5 minutes): a draft was rejected. From which distribution is the token drawn that takes its place?
def after_rejection(p, q, draft):
    """p, q [V]: distributions of model and module; draft: the rejected token (you may not need it) -> [V]"""
    ...  # your code here


# %% tags=["check"]
exercise("12.3").check(after_rejection)


# %% tags=["exercise"]
# Exercise 12.4 (10 minutes): acceptance at each depth, and tokens per forward pass, from a log of rounds.
def measured(rounds):
    """rounds: list of (drafts made, drafts accepted) -> (list: acceptance of draft 1, 2, ...; tokens per round)"""
    ...  # your code here


# %% tags=["check"]
exercise("12.4").check(measured)

# %% [markdown]
# Costs in units of a plain step. `verify[k]` is that of a pass over a token and k drafts, so `verify[0]` is 1; `draft`
# is that of one draft.


# %% tags=["exercise"]
# Exercise 12.5 (10 minutes): how many drafts make decoding fastest? None is an answer, too.
def best_depth(acceptance, verify, draft):
    """acceptance: list, of draft 1, 2, ..., given that all before it were accepted -> (number of drafts, speed-up)"""
    ...  # your code here


# %% tags=["check"]
exercise("12.5").check(best_depth)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 12.A: the draft of t+2 compared with p(t+1)

# %%
exhibit("12.A").show()

# %% tags=["predict"]
exhibit("12.A").predict()

# %%
exhibit("12.A").run()

# %%
exhibit("12.A").diagnose()

# %% [markdown]
# ### Exhibit 12.B: rejected drafts stay in the cache

# %%
exhibit("12.B").show()

# %% tags=["predict"]
exhibit("12.B").predict()

# %%
exhibit("12.B").run()

# %%
exhibit("12.B").diagnose()

# %% [markdown]
# ## What the report says
#
# * **§2.2**: the modules may be dropped at inference, or used for speculative decoding. The report sets EAGLE beside
#   it, which keeps the same causal chain and is made for speed alone; here the second target was trained for its own
#   sake.
# * **§5.4.3**: across topics, 85 to 90 % of second tokens are accepted, and decoding makes 1.8 times the tokens per
#   second. By the formula one draft with that acceptance gives 1.85 to 1.9 tokens per step, so a step with its draft
#   costs hardly more than one without. The picture for V3 above says in which company that can be: in a crowd.
# * **§3.4.2**: in decoding, an expert usually gets at most 256 tokens, and reading weights is the bottleneck.
# * **Not in the report**: at which batch, temperature and length the 1.8 was measured; chained drafts; the rule for
#   drawn tokens (it cites Leviathan et al. for the method). The released code has no MTP at all (difference D24).

# %% [markdown]
# ## Recap
#
# * A step can check several tokens that somebody else wrote. The module of lesson 09 writes them.
# * A round: draft, verify in one pass, accept up to the first that is wrong, one bonus token, crop the cache.
# * Greedy, the text is the same. Drawn, the distribution is the same, if a rejected draft gives way to a draw from what
#   is missing of $p$.
# * Acceptance, tokens per round and speed-up are three numbers.
# * Drafts pay when acceptance exceeds the extra cost of verifying plus that of drafting. Depth makes drafts cheap; a
#   crowd makes verifying cheap in a mixture of experts.

# %%
draw_idea_graph(highlight=["specdec"])

# %% [markdown]
# *In words: the idea graph of the report, with the node of speculative decoding filled. It needs multi-token prediction
# and the latent cache.*
#
# **Next:** lesson 13, in which the numbers themselves get smaller: floats of one byte.
