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
# # 15 Long context
#
# *About 45 minutes with the exercises. You need lesson 03 (positions); lesson 04 and lesson 11 help. This lesson lets a
# model read far more tokens than it was trained with, and measures whether it finds anything in them.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import math
    import shutil
    import tempfile
    from pathlib import Path

    import torch

    from dsv3_mini import ModelConfig
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.generate.decode import generate
    from dsv3_mini.interop.load import load_pretrained
    from dsv3_mini.model.long_context import extended
    from dsv3_mini.model.rope import rope_frequencies, softmax_scale
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train.balance_lab import load_lab
    from dsv3_mini.train.config import TrainConfig
    from dsv3_mini.train.context_lab import (
        FACTOR,
        MAPS,
        TRAINED,
        corpus,
        load_models,
        share_found,
    )
    from dsv3_mini.train.evaluate import select_documents
    from dsv3_mini.train.extend import beginning
    from dsv3_mini.train.loop import train
    from dsv3_mini.train.needle import CHANCE, Haystack, Needle, found, needle_map
    from dsv3_mini.viz import style
    from dsv3_mini.viz.idea_graph import draw_idea_graph
    from dsv3_mini.viz.needle_map import NeedleMap, draw_needle_maps, map_in_words
    from dsv3_mini.viz.picture import Picture
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
# A small model was trained with rows of 256 tokens. It learned one trick on the way: when a line such as `QX = 481`
# stands somewhere in the code and the text ends with `QX =`, it writes the number. Code that it has never seen, a name
# and a number that training did not have:

# %%
models, tokenizer = load_models()
small = models["before"]
haystack = Haystack(tokenizer, corpus().heldout)
code = haystack.tokens
needle = Needle("QX", "481")
row = haystack.planter.row(code[2000:3000], needle, depth=0.4, length=200)  # [200], answer included
prompt = row[:-3].tolist()
print(tokenizer.decode(prompt))
print("-> the model writes", tokenizer.decode(generate(small, [prompt], 3)[0]))

# %% [markdown]
# Nothing in its mathematics has a length: RoPE has an angle for every position, and attention takes as many keys as
# there are. So give it more code to look through.

# %%
for length in (128, 256, 512, 1024):
    rows = torch.cat([haystack.cell(length, depth, 8)[0] for depth in (0.0, 0.5, 1.0)])
    share = found(small, rows).all(-1).float().mean()
    print(f"{length:5} tokens: {share:4.0%} of {len(rows)} needles found")

# %% [markdown]
# No error, and no answer either. **Why does a model fail beyond the length of its training, although every part of it
# can be computed there? And what does it take to read on?**

# %% [markdown]
# ## What you will be able to do
#
# * Say which angles a model has seen in training, and which are new to it in a longer text.
# * Build YaRN's speeds and its temperature from the report's formula, and put each into its place.
# * Extend a loaded model without changing a weight, and explain why that takes an explicit switch.
# * Test a model with needles in a haystack, and read a map of depth and length.
# * Repeat the report's two phases at a small size, with a control that differs in the length alone.

# %% [markdown]
# ## Predict

# %% tags=["predict"]
guess_1 = predict(
    "15.p1",
    "The part of a key that turns has 64 numbers in DeepSeek-V3, so 32 pairs, each with its own speed. It is "
    "pre-trained with 4,096 tokens in a row. How many of the pairs never finish a turn within them?",
    unit="pairs",
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "15.p2",
    "You take the small model as it is, switch YaRN on, train nothing, and ask again. What happens?",
    choices={
        "a": "everything is as good as before, at every length",
        "b": "long rows get better, rows within 256 tokens get worse",
        "c": "everything gets worse: the weights do not know these angles",
        "d": "nothing changes without training",
    },
)
guess_2

# %% tags=["predict"]
guess_3 = predict(
    "15.p3",
    "Then it is trained a little with rows of 1,024 tokens, YaRN on. What share of the needles does it find in rows of "
    "1,024 tokens afterwards?",
    unit="percent",
)
guess_3

# %% [markdown]
# ## Build it
#
# ### Which angles has it seen?
#
# A pair turns by its speed at every position (lesson 03). Over the rows of training, a fast pair goes round and round
# and meets every angle many times. A slow one gets only a little way. Here are the eight pairs of the small model; the
# last column is how far each of them has come at position 256, in turns.


# %%
def plain_speeds(width, theta=10_000.0):
    """Angle per position of each pair, [width / 2]."""
    return theta ** (-2.0 * torch.arange(width // 2) / width)


width = small.cfg.qk_rope_head_dim
turns = plain_speeds(width) * TRAINED / (2 * math.pi)  # [8]
for j, (speed, turn) in enumerate(zip(plain_speeds(width), turns, strict=True)):
    print(f"pair {j}: {speed:.5f} radians per position, {turn:8.3f} turns in {TRAINED} positions")

# %% [markdown]
# In a row four times as long a pair that made a hundredth of a turn makes four hundredths: angles that no query and no
# key ever had between them in training. What the weights make of such an angle was never trained. The fast pairs know
# every angle already; to them a longer row is nothing new.
#
# ### First idea: squeeze everything
#
# Divide all speeds by the factor, and the longest row has the angles of the old one. Then nothing is new. But look at
# the fastest pair, the one that tells neighbours apart:

# %%
for s in (1, 4, 16):
    step = math.degrees(plain_speeds(width)[0] / s)
    print(
        f"all speeds divided by {s:2}: neighbours are {step:4.1f} degrees apart in the fastest pair"
    )

# %% [markdown]
# What was a step is now a hair. A head that looks "two tokens back" has to do it with angles a sixteenth as large.
#
# ### YaRN: each pair by what it has seen
#
# So treat them differently, by how often a pair turns within the original length. More than $\beta = 32$ times: leave
# it. Less than $\alpha = 1$ time: divide by $s$. In between, blend the two along a straight line. The report applies
# it with $s = 40$ (§4.3). Which pairs are these? Solve "turns within the original length" for the index $j$:
#
# $$\text{turns} = \frac{L}{2\pi}\,\theta^{-2j/R} \quad\Longleftrightarrow\quad
# j = \frac{R \,\ln\!\big(L / (2\pi \cdot \text{turns})\big)}{2 \ln \theta}$$


# %%
def pair_that_turns(turns, width, length, theta=10_000.0):
    """The index, not whole, of the pair that turns so often within `length` positions."""
    return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))


for name, R, L in (("DeepSeek-V3", 64, 4096), ("the small model", width, TRAINED)):
    first, last = (pair_that_turns(t, R, L) for t in (32, 1))
    print(f"{name}: the ramp begins at pair {first:.2f} and ends at {last:.2f}, of {R // 2} pairs")

# %% [markdown]
# Rounded outwards that is 10 and 23 for DeepSeek-V3 (exercise 15.1). The ramp as a share for each pair, 0 for "as it
# was" and 1 for "divided by s", and then the speeds:


# %%
def by_hand(width, length, s, low, high):
    """The speeds with YaRN, pair by pair."""
    speeds = []
    for j, speed in enumerate(plain_speeds(width).tolist()):
        share = min(max((j - low) / (high - low), 0.0), 1.0)
        speeds.append((1 - share) * speed + share * speed / s)
    return torch.tensor(speeds)


v3_speeds = by_hand(64, 4096, 40, low=10, high=23)
small_speeds = by_hand(width, TRAINED, FACTOR, low=0, high=4)
plain = plain_speeds(64)
for j in (0, 10, 13, 16, 19, 22, 23, 31):
    print(
        f"pair {j:2}: {plain[j]:.6f} -> {v3_speeds[j]:.6f}, divided by {plain[j] / v3_speeds[j]:5.2f}"
    )

# %% [markdown]
# ### A little sharper
#
# One more thing grows with the length: the number of keys that share the attention. A softmax over more scores spreads
# more thinly. YaRN makes up for it by larger scores, and the report uses its formula $\sqrt t = 0.1 \ln s + 1$. Queries
# and keys both get the factor, so scores get its square.

# %%
torch.manual_seed(0)
for keys in (256, 4096):
    noise = torch.randn(2000, keys)
    noise[:, 0] = 5.0  # the one key that is looked for stands out
    for s in (1.0, FACTOR):
        weight = (noise * (0.1 * math.log(s) + 1) ** 2).softmax(-1)[:, 0].mean()
        print(f"{keys:5} keys, s = {s:2.0f}: the key that is looked for gets {weight:4.0%}")

# %% [markdown]
# In MLA the factor belongs to the scale of the softmax, because only a part of each key is turned (exhibit 15.B shows
# the other place). For DeepSeek-V3:

# %%
factor = (0.1 * math.log(40) + 1) ** 2
print(f"sqrt(t) = {0.1 * math.log(40) + 1:.5f}, squared {factor:.5f}")
print(f"scale of the softmax: {192**-0.5:.4f} before, {192**-0.5 * factor:.4f} with YaRN")

# %% [markdown]
# ### A switch, said out loud
#
# Weights do not contain YaRN; the code around them does. So something has to say that it is on. Here that is a field of
# the config, and `extended` builds a model around the very same tensors:

# %%
longer = extended(small, FACTOR, TRAINED)
same = all(
    a.data_ptr() == b.data_ptr()
    for a, b in zip(small.parameters(), longer.parameters(), strict=True)
)
print("the same tensors:", same)
print("before:", small.cfg.rope_scaling)
print("after: ", longer.cfg.rope_scaling)

# %% [markdown]
# ### What do we measure?
#
# Loss on long texts says little: most tokens can be guessed from the last few dozen. So the report hides a sentence in
# a long text and asks for it, at every depth and length, and calls that *needle in a haystack*. Ours is the line with a
# number. Four decisions, all to be said beside any such map:
#
# * **Haystack**: code from files that training never saw. **Needles**: names and numbers that training never planted.
# * **Depth**: where the line stands; 0 % at the beginning of the row, 100 % right before the question.
# * **Score**: the whole number or nothing. Who guesses three digits is right once in 900 times.
# * **How it is asked**: greedy decoding. One forward pass over prompt *and* answer says the same: decoding writes the
#   answer exactly if at each of its places the likeliest token is the right one.

# %%
print(f"guessing is right once in {1 / CHANCE:.0f} times")
rows, needles = haystack.cell(length=512, depth=0.5, count=6)  # [6, 512]
in_one_pass = found(longer, rows).all(-1)  # [6]
for i, hidden in enumerate(needles):
    said = tokenizer.decode(generate(longer, [rows[i, :-3].tolist()], 3)[0])
    print(
        f"{hidden.name} = {hidden.value}: decoding writes {said!r:6}, one pass says {bool(in_one_pass[i])}"
    )

# %% [markdown]
# ### The two phases
#
# The report extends the context in two short phases of a thousand steps each (§4.3). Scaled down: the small model was
# trained with rows of 256 tokens; the first phase has 1,024, the second 4,096. In every stage half of the rows hold
# needles, in the one called "before" too: it has the steps and the settings of the first phase, and rows of 256 tokens.
# So between "before" and "after the first phase" nothing differs but the length, and YaRN.
#
# A phase is one command, `dsv3-mini train --init-from RUN --yarn-factor 20 --seq-len 1024`. Here is the very beginning
# of the first one, a few steps on a small text:

# %%
work = Path(tempfile.mkdtemp(prefix="lesson-15-"))
(work / "text").mkdir()
for number, document in enumerate(select_documents(corpus().train, 200_000)):
    (work / "text" / f"{number:03}.txt").write_text(document.text, encoding="utf-8")


def short_phase(steps, seq_len=4 * TRAINED, yarn_factor=FACTOR):
    """A model that began with the weights of "before" and was trained with longer rows."""
    shutil.rmtree(work / "run", ignore_errors=True)
    start = beginning(data_dir() / "long_context" / "before", yarn_factor)
    return train(
        TrainConfig(
            out=work / "run", text=work / "text", seq_len=seq_len, steps=steps, lr=1e-3, batch_tokens=4096,
            micro_batch_tokens=4096, needle_share=0.5, eval_bytes=5_000, baselines=False, device="cpu", **start,
        ),
        progress=False,
    )  # fmt: skip


after_a_few = load_pretrained(short_phase(16).checkpoint)
few = dict(lengths=(128, 256, 512, 1024), depths=(0.0, 0.5, 1.0), count=8)
live = {
    "before": needle_map(small, tokenizer, corpus().heldout, **few),
    "YaRN, not trained": needle_map(longer, tokenizer, corpus().heldout, **few),
    "YaRN, 16 steps": needle_map(after_a_few, tokenizer, corpus().heldout, **few),
}
print(f"{'needles found':20}" + "".join(f"{length:>7}" for length in few["lengths"]) + "  tokens")
for name, found_map in live.items():
    shares = [share_found(found_map, length) for length in few["lengths"]]
    print(f"{name:20}" + "".join(f"{share:7.0%}" for share in shares))

# %% [markdown]
# With 24 needles a column, some of the difference between two lines is luck, and so few steps say little. The kept run
# under Play has hundreds of them.

# %% [markdown]
# ## Reveal

# %%
unfinished = int((plain_speeds(64) * 4096 / (2 * math.pi) < 1).sum())
guess_1.reveal(
    unfinished, "they have seen a part of a circle, and beyond 4,096 tokens comes the rest"
)

# %%
result = load_lab("needle")
maps = result["maps"]
within = [share_found(maps[name], TRAINED) for name in ("before", "yarn")]
beyond = [share_found(maps[name], 4 * TRAINED) for name in ("before", "yarn")]
print(f"at   {TRAINED} tokens: {within[0]:.0%} without YaRN, {within[1]:.0%} with it")
print(f"at {4 * TRAINED} tokens: {beyond[0]:.0%} without YaRN, {beyond[1]:.0%} with it")
if beyond[1] > beyond[0]:
    answer = "b" if within[1] < within[0] else "a"
else:
    answer = "c"
guess_2.reveal(answer, "the weights meet angles that they half know")

# %%
share = 100 * share_found(maps["phase-1"], 4 * TRAINED)
guess_3.reveal(
    round(share),
    f"in the kept run; after the second phase it is {share_found(maps['phase-2'], 4 * TRAINED):.0%}",
)

# %% [markdown]
# ## Check against the package

# %%
v3 = ModelConfig.preset("v3-671b")
difference = (v3_speeds - rope_frequencies(v3)).abs().max()
print(f"max |diff| against rope_frequencies, DeepSeek-V3: {difference:.1e} (tolerance 1e-06)")
difference = (small_speeds - longer.model.rotary.frequencies).abs().max()
print(f"max |diff| against the extended model's speeds: {difference:.1e} (tolerance 1e-06)")
difference = abs(192**-0.5 * factor - softmax_scale(v3))
print(f"max |diff| against softmax_scale, DeepSeek-V3: {difference:.1e} (tolerance 1e-09)")

tokens = torch.randint(5, tokenizer.vocab_size, (2, 300))
by_config = load_pretrained(data_dir() / "long_context" / "phase-2")
by_switch = extended(small, FACTOR, TRAINED)
by_switch.load_state_dict(by_config.state_dict())
with torch.no_grad():
    difference = (by_config(tokens).logits - by_switch(tokens).logits).abs().max()
print(f"max |diff| against a model whose config.json has YaRN: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# ## Play
#
# ### The maps
#
# The whole experiment, kept from a run of `python tests/benchmarks/run.py needle`: seven depths, seven lengths. The
# dashed bar stands at the length of the training.

# %%
titled = {MAPS[name]: found_map for name, found_map in maps.items()}
for name, found_map in titled.items():
    print(name)
    print(map_in_words(found_map))
draw_needle_maps(titled, TRAINED)

# %% [markdown]
# *In words: the lines above the picture. Before, everything to the right of the bar is dark. YaRN alone spreads what is
# found over all lengths, thinly. Rows of 1,024 tokens fill most of the map, and reach beyond 1,024. The second phase
# took some of that away again.*
#
# The last map disappoints, and is shown all the same. A step of the second phase has a single row, every other one
# holds needles, and they are thinner in it: what is trained is mostly ordinary text. The table of bits per byte below
# fits that, for there the second phase is the best of all. But this is a guess; no run here has tested it.
#
# Now walk through them: choose a map, click on a cell or move with the arrow keys. Below the table stands the text of
# that cell, and what the model of the map writes.

# %%
NeedleMap(
    titled,
    {MAPS[name]: model for name, model in models.items()},
    tokenizer,
    corpus().heldout,
    trained=TRAINED,
    line=3,
    column=4,
)

# %% [markdown]
# And ordinary text? Bits per byte of held-out files, in windows of three lengths:

# %%
bits = result["runs"][0]["bits_per_byte"]
windows = list(bits["before"])
print(
    f"{'bits per byte':32}" + "".join(f"{window:>8}" for window in windows) + "  tokens in a window"
)
for name, row_of_bits in bits.items():
    print(f"{MAPS[name]:32}" + "".join(f"{row_of_bits[window]:8.3f}" for window in windows))

# %% [markdown]
# Read each line from left to right. Where it rises, longer windows confuse the model; where it stays level, it bears
# them. Level is all that one sees here, because text has little far away that helps a model this small. And the two
# measures disagree about the phases: a good reason not to judge long context by loss alone, nor by needles alone.
#
# ### The slow pairs
#
# Change `s`, `L` and `R` in the first line. Which pairs lie on the ramp, and how far does the slowest one get in `s *
# L` positions?

# %%
R, L, s = 64, 4096, 40  # yours: change and run again

low = max(math.floor(pair_that_turns(32, R, L)), 0)
high = min(math.ceil(pair_that_turns(1, R, L)), R - 1)
figure = Picture(*style.SIZE, layout="constrained")
axes = figure.subplots()
for name, speeds, (colour, line, marker) in zip(
    (f"plain, {L:,} positions", f"plain, {s * L:,} positions", f"YaRN, {s * L:,} positions"),
    (plain_speeds(R) * L, plain_speeds(R) * s * L, by_hand(R, L, s, low, high) * s * L),
    style.STYLES,
    strict=False,
):
    axes.plot(
        speeds / (2 * math.pi),
        color=colour,
        linestyle=line,
        marker=marker,
        markersize=3,
        label=name,
    )
axes.axhline(1, color=style.GREY, linewidth=1)
axes.set(yscale="log", xlabel="pair", ylabel="turns", title="How often a pair turns")
axes.legend()
print(f"ramp from pair {low} to {high}; slowest pair: ", end="")
print(f"{plain_speeds(R)[-1] * L / (2 * math.pi):.3f} turns in training, ", end="")
print(f"{by_hand(R, L, s, low, high)[-1] * s * L / (2 * math.pi):.3f} in the longest row")
figure

# %% [markdown]
# *In words: three falling lines. The dashed one, plain speeds in the longest row, lies above the solid one everywhere:
# all pairs turn further than in training. The third begins with the dashed one and ends on the solid one: its fast
# pairs turn further, which they know, and its slow pairs come exactly as far as in training.*

# %% [markdown]
# ## Exercises
#
# Write your code in the cell that opens with `# Exercise`, run it, then run the cell under it.


# %% tags=["exercise"]
# Exercise 15.1 (8 minutes): between which pairs does YaRN blend? Round outwards; the pairs are 0 to width - 1 at most.
def ramp_bounds(width, theta, original, fast=32, slow=1):
    """width: numbers that turn; original: length of training; fast, slow: turns -> (low, high), whole numbers."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("15.1").hint(), and in the end exercise("15.1").solution()
exercise("15.1").check(ramp_bounds)


# %% tags=["exercise"]
# Exercise 15.2 (8 minutes): the speeds with YaRN, all pairs at once.
def yarn_speeds(plain, low, high, s):
    """plain [pairs]; low < high: the ramp -> speeds [pairs]: unchanged up to low, divided by s from high on."""
    ...  # your code here


# %% tags=["check"]
exercise("15.2").check(yarn_speeds)


# %% tags=["exercise"]
# Exercise 15.3 (8 minutes): the scores of one head of MLA with YaRN's temperature. The vectors are turned already.
def scores(q_nope, q_pe, k_nope, k_pe, s):
    """q_nope [T, N], q_pe [T, R], k_nope [S, N], k_pe [S, R]; s: YaRN's factor -> [T, S], without mask or softmax."""
    ...  # your code here


# %% tags=["check"]
exercise("15.3").check(scores)

# %% [markdown]
# You load weights into a program. You know `original`, the length of the first training; `buffer`, for how many
# positions the program makes a table; and `extended`, whether the weights went through the phases.


# %% tags=["exercise"]
# Exercise 15.4 (5 minutes): which speeds are right for these weights?
def speeds_in_use(plain, slowed, original, buffer, extended):
    """plain, slowed [pairs]; original, buffer: positions; extended: True or False -> one of the two."""
    ...  # your code here


# %% tags=["check"]
exercise("15.4").check(speeds_in_use)


# %% tags=["exercise"]
# Exercise 15.5 (8 minutes): the score of the needle test from one forward pass. The answer stands at the end of a row.
def found_share(logits, rows, answer):
    """logits [B, T, V] of rows [B, T]; answer: its number of tokens -> share of the rows found, a plain number."""
    ...  # your code here


# %% tags=["check"]
exercise("15.5").check(found_share)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 15.A: YaRN switched on by buffer length

# %%
exhibit("15.A").show()

# %% tags=["predict"]
exhibit("15.A").predict()

# %%
exhibit("15.A").run()

# %%
exhibit("15.A").diagnose()

# %% [markdown]
# ### Exhibit 15.B: mscale in the wrong place

# %%
exhibit("15.B").show()

# %% tags=["predict"]
exhibit("15.B").predict()

# %%
exhibit("15.B").run()

# %%
exhibit("15.B").diagnose()

# %% [markdown]
# ## What the report says
#
# * YaRN is applied to the decoupled shared key only, with $s = 40$, $\alpha = 1$, $\beta = 32$ and $\sqrt t = 0.1 \ln s
#   + 1$, the same in both phases (§4.3). In the code the rescaled angles turn queries and keys alike; the content part
#   has no position at all.
# * Two phases of a thousand steps each, at 7.3e-6, the rate at which pre-training ended: a context of 32K with a batch
#   of 1920, then a context of 128K with a batch of 480 (§4.3). A step has as many tokens as a step of pre-training.
# * From 4K to 128K is 32 times the length, and yet $s = 40$. The report does not say why. Ours is
#   larger than our extension in the same proportion.
# * Needle in a haystack: full score at every depth and length from 2K to 128K, and that was measured *after* supervised
#   fine-tuning (Figure 8). There is no map from before the extension, and none between the phases.
# * Ours has needles in its training, which the report does not speak of. Without them a model of this size finds
#   nothing at any length, so our map shows what the *length* does and not how good the model is. And it does not come
#   near a full score: the phases have some hundred steps, and the second one costs needles.

# %% [markdown]
# ## Recap
#
# * Beyond the length of training, slow pairs reach angles that the weights have never met.
# * YaRN slows down exactly those, blends in between, and sharpens the softmax. It is a property of the weights' history
#   and so belongs to their config.
# * Switched on alone it carries a model part of the way; short training at the longer length does most of the rest.
# * A needle map needs its decisions said: haystack, depth, score, how it is asked, and what it is compared with.
#
# In the idea graph you are at *Decoupled RoPE key and YaRN*. **Next:** lesson 16, how a model that fits no machine is
# spread over many.

# %%
draw_idea_graph(highlight=["rope_yarn"])
