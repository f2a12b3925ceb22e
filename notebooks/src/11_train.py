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
# # 11 Train it
#
# *About 70 minutes. You need [08 The whole model](08_whole_model.ipynb) and [10 Data](10_data.ipynb). This lesson turns
# a model and a pile of text into a run: optimizer, schedule, checkpoints, and a dashboard to watch it with.*

# %% tags=["setup"]
# Set-up: run this cell first. It is safe to run again.
try:
    import hashlib
    import json
    import math
    import shutil
    import tempfile
    import time
    from pathlib import Path

    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file, save_file

    from dsv3_mini import DeepSeekV3, ModelConfig
    from dsv3_mini.course import exercise, exhibit, predict
    from dsv3_mini.course.prediction import Sketch
    from dsv3_mini.model.count import count_parameters
    from dsv3_mini.paths import data_dir
    from dsv3_mini.train import schedule
    from dsv3_mini.train.balance_lab import load_lab
    from dsv3_mini.train.config import TrainConfig
    from dsv3_mini.train.corpus import embedded_corpus
    from dsv3_mini.train.data import open_data
    from dsv3_mini.train.evaluate import select_documents
    from dsv3_mini.train.loop import train
    from dsv3_mini.train.metrics import (
        matmul_parameters,
        peak_flops,
        read_metrics,
        training_flops_per_token,
    )
    from dsv3_mini.train.optimizer import build_optimizer, clip_gradients
    from dsv3_mini.viz import style
    from dsv3_mini.viz.dashboard import Dashboard
    from dsv3_mini.viz.idea_graph import draw_idea_graph
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
# The model is written, the text is cut into tokens. What is missing looks like three lines: loss, gradient, a step
# downhill. Here they are, on a tiny model of the same build and a small text, with three step lengths.

# %%
work = Path(tempfile.mkdtemp(prefix="lesson-11-"))
(work / "text").mkdir()
for number, document in enumerate(select_documents(embedded_corpus().train, 150_000)):
    (work / "text" / f"{number:03}.txt").write_text(document.text, encoding="utf-8")

TINY = ModelConfig.preset(
    "nano", vocab_size=512, hidden_size=64, num_hidden_layers=2, intermediate_size=96,
    num_attention_heads=2, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8,
    v_head_dim=16, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, n_group=2,
    topk_group=1,
)  # fmt: skip


def new_folder(name):
    """A folder for a run; what an earlier run of the same cell left there goes."""
    shutil.rmtree(work / name, ignore_errors=True)
    return work / name


def settings(name, resume=False, **changes):
    """A short run of the tiny model, into a new folder of this name or continued there."""
    usual = dict(
        text=work / "text", steps=40, seq_len=64, batch_tokens=512, eval_bytes=5_000, device="cpu",
        lr=1e-2, baselines=False, checkpoint_every=1000, routing_every=5, model=TINY,
    )  # fmt: skip
    out = work / name if resume else new_folder(name)
    return TrainConfig(out=out, resume=resume, **{**usual, **changes})


data = open_data(settings("unused").resolved())
inputs, targets = data.windows.batch(0, 8)  # token ids [8, 64] and what follows them
print(f"{len(data.windows.tokens):,} tokens to train on; a batch: {tuple(inputs.shape)}")


def downhill(make, steps=40):
    """Losses of a fresh tiny model under the optimizer that `make(model)` gives."""
    torch.manual_seed(0)
    model = DeepSeekV3(data.model_config)
    optimizer, losses = make(model), []
    for step in range(steps):
        loss = model(*data.windows.batch(8 * step, 8), keep_logits=False).losses["main"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


for rate in (0.1, 1.0, 10.0):
    losses = downhill(lambda model, rate=rate: torch.optim.SGD(model.parameters(), lr=rate))
    print(f"plain steps of {rate:4}: loss {losses[0]:.2f} at first, {losses[-1]:.2f} after 40")
adamw_losses = downhill(lambda model: build_optimizer(model, 1e-2))
print(
    f"the report's optimizer: loss {adamw_losses[0]:.2f} at first, {adamw_losses[-1]:.2f} after 40"
)

# %% [markdown]
# Same model, same batches in the same order; only the step is another one. With plain steps everything hangs on a rate
# that somebody has to find, too small or too large by ten and little is learned. And this is only the first question of
# a run that takes two months. **How long should each step be, and when? What if the machine dies on the way? And how do
# you see, while it runs, that all is well?**

# %% [markdown]
# ## What you will be able to do
#
# * Write the optimizer step of the report by hand, clipping and decay included.
# * Draw the schedule of the report, and scale it to a run of any length.
# * Say what share of a machine a run uses, and what is counted in that.
# * Name everything that a checkpoint must hold, and show what happens when a part is missing.
# * Watch a run, stop it, continue it; and compare a mixture of experts with its dense twin honestly.

# %% [markdown]
# ## Predict

# %% tags=["predict"]
guess_1 = predict(
    "11.p1",
    "The report trains on 14.8 trillion tokens. Sketch its learning rate over the tokens, in shares of its peak. "
    "(The warm-up is over long before the second point.)",
    sketch=Sketch(
        (0, 3, 6, 9, 11, 12, 13, 14.2, 14.8), 0, 1, "trillion tokens", "share of the peak"
    ),
)
guess_1

# %% tags=["predict"]
guess_2 = predict(
    "11.p2",
    "A sequence has 4,096 tokens. A batch has 3,072 sequences at first and grows to 15,360 over the first 469 billion "
    "tokens; then it stays. How many optimizer steps are 14.8 trillion tokens?",
    unit="steps",
)
guess_2

# %% tags=["predict"]
guess_3 = predict(
    "11.p3",
    "A run is stopped and continued. Everything comes back but the optimizer's running means, which start again at "
    "zero. What do the losses do, beside those of a run that was never stopped?",
    choices={
        "a": "they are the same: the means only smooth what the gradients say",
        "b": "the first one is the same, then they differ",
        "c": "they differ from the first one on",
        "d": "training ends with an error",
    },
)
guess_3

# %% tags=["predict"]
guess_4 = predict(
    "11.p4",
    "A mixture of experts and a dense model, equally many active parameters, the same text, equally many steps of a "
    "short training. Which one is better at held-out text, measured in bits per byte?",
    choices={
        "a": "the mixture of experts, by more than 0.02",
        "b": "about level",
        "c": "the dense model, by more than 0.02",
    },
)
guess_4

# %% [markdown]
# ## Build it
#
# ### A gradient is a rumour
#
# A gradient comes from one batch. Another batch says something else. Take a single weight with a true slope of one, and
# gradients that scatter around it. What does a running mean make of them?

# %%
noise = torch.Generator().manual_seed(0)
gradients = 1.0 + 3.0 * torch.randn(200, generator=noise)
m, means = 0.0, []
for gradient in gradients.tolist():
    m = 0.9 * m + 0.1 * gradient
    means.append(m)
print("the first gradients:    ", [round(g, 2) for g in gradients[:6].tolist()])
print("running mean m:         ", [round(value, 2) for value in means[:6]])
print(f"scatter of the gradients {gradients.std():.2f}, of m {torch.tensor(means[50:]).std():.2f}")

# %% [markdown]
# It is much steadier. But look at its beginning: $m$ starts at zero, so after one step it holds a tenth of a gradient.
# After $t$ steps the weights in it add up to $1 - \beta_1^t$ and not to one; dividing by that repairs it. ($\beta_1$ is
# what the mean keeps of itself in a step; AdamW's beta is 0.9 here.)

# %%
print(
    "m / (1 - 0.9^t):",
    [round(value / (1 - 0.9 ** (t + 1)), 2) for t, value in enumerate(means[:6])],
)

# %% [markdown]
# ### A step of the right length
#
# One learning rate serves an embedding that is hardly ever touched and a norm weight that everything passes. So Adam
# keeps a second running mean, $v$, of the *squares*, and divides by its root. What is left has no unit: about one where
# the gradients agree, near zero where they are noise.

# %%
for name, scale in (("a weight with small gradients", 1e-4), ("one with large gradients", 1e2)):
    m = v = 0.0
    for gradient in (scale * gradients).tolist():
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
    print(f"{name:30} m {m:10.2e}  step {m / math.sqrt(v):.3f} times the rate")

# %% [markdown]
# ### Decay that does not ask the gradient
#
# Weights that nothing needs should shrink. In AdamW they do so on their own account: each step takes away the learning
# rate times the weight decay of 0.1, whatever the gradient says. That makes the whole step:


# %%
def adamw(weight, gradient, m, v, step, lr, decay=0.1):
    """One step for one tensor; step counts from 1. Gives the new weight, m and v."""
    m = 0.9 * m + 0.1 * gradient
    v = 0.95 * v + 0.05 * gradient**2
    update = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    return weight * (1 - lr * decay) - lr * update, m, v


weight = torch.tensor([1.0, 1.0, 1.0])
new, _, _ = adamw(
    weight, torch.tensor([1e-3, 5.0, 0.0]), torch.zeros(3), torch.zeros(3), 1, lr=0.01
)
print("the first step moves by:", [round(value, 5) for value in (new - weight).tolist()])

# %% [markdown]
# The small gradient and the large one move their weights equally far, by the learning rate, and the decay takes a
# little more. The third weight has no gradient at all; only the decay moves it.
#
# ### One bad batch
#
# Now and then a batch is nonsense: a page of one digit, a broken file. Its gradient is many times as long as the
# others, and it would sit in $m$ and $v$ for many steps. The report's remedy is clipping: if the norm of the gradient,
# over *all* parameters together, is above 1, everything is scaled down to 1.

# %%
torch.manual_seed(0)
model = DeepSeekV3(data.model_config)
digit = torch.full_like(inputs, data.tokenizer.encode("7")[0])  # a page of nothing but sevens
for name, (given, asked) in {"text": (inputs, targets), "sevens": (digit, digit)}.items():
    model.zero_grad()
    logits = model(given, mtp=False).logits  # [8, 64, V]
    F.cross_entropy(logits.flatten(0, 1), asked.flatten()).backward()
    squares = [p.grad.pow(2).sum().item() for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(squares))
    print(
        f"{name:7} norm over {len(squares)} tensors {norm:6.3f}, so all gradients times {min(1, 1 / norm):.3f}"
    )

# %% [markdown]
# ### The schedule
#
# Four things change over the run of the report (§4.2): the learning rate, the batch, the weight $\lambda$ of the MTP
# loss and the speed $\gamma$ of the routing bias. All but the warm-up are given in tokens, so they can be drawn over
# one axis. The same four functions of the *share* of tokens give a run of any length; below them is the learning rate
# of `nano`, in steps.

# %%
TOKENS = 14.8e12
shares = [i / 1000 for i in range(1001)]
trillions = [share * TOKENS / 1e12 for share in shares]
curves = {
    "learning rate": [schedule.learning_rate(s, schedule.REPORT_PEAK_RATE) for s in shares],
    "sequences in a batch": [schedule.batch_sequences(s, schedule.REPORT_BATCH) for s in shares],
    "lambda, weight of MTP": [schedule.mtp_weight(s) for s in shares],
    "gamma, speed of the bias": [schedule.bias_speed(s) for s in shares],
}
figure = Picture(9.2, 5.4, layout="constrained")
panels = figure.subplots(2, 2, sharex=True).flatten()
for axes, (name, values), colour in zip(panels, curves.items(), style.LINES, strict=True):
    axes.plot(trillions, values, color=colour)
    axes.set_title(name, fontsize=10)
    axes.set_ylim(0, None)
for axes in panels[2:]:
    axes.set_xlabel("trillion tokens")
figure

# %% [markdown]
# *In words: the learning rate is at its peak until 10T tokens, falls along a cosine until 14.3T, and ends on two small
# steps; the batch grows in the first few hundred billion tokens; $\lambda$ drops where the fall begins, $\gamma$ where
# it ends.*

# %%
nano_run = schedule.Schedule(
    steps=1300,
    full_batch=4,
    peak_rate=5e-3,
    peak_bias_speed=0.01,
    warmup=schedule.warmup_steps(1300),
)
print(f"nano: {len(nano_run)} steps, {nano_run.warmup} of them warm-up")
for step in (1, 11, 40, 700, 1000, 1200, 1270, 1300):
    now = nano_run[step - 1]
    print(
        f"step {step:4}: {now.progress:5.1%} of the tokens, rate {now.lr:.2e}, {now.sequences} sequences, "
        f"lambda {now.mtp_weight}, gamma {now.bias_speed}"
    )

# %% [markdown]
# Why no cosine from the first step on, as in most recipes? The report gives no reason. A long constant part has one
# practical merit: until it ends, nobody needs to know how long the run will be.
#
# ### How well is the machine used?
#
# Tokens per second say nothing without the machine. So count what the model needs. A weight in a matrix product costs
# two operations for each token, a multiplication and an addition, and the backward pass costs twice as much again: six.
# In a mixture of experts only the weights that a token meets count. Let us count them for `nano`.

# %%
nano = ModelConfig.preset("nano")
torch.manual_seed(0)
fresh = DeepSeekV3(nano)
weights = 0
for name, p in fresh.named_parameters():
    if p.dim() == 3:  # stacked experts: a token meets K of N
        weights += p.numel() * nano.num_experts_per_tok // nano.n_routed_experts
    elif p.dim() == 2 and "embed_tokens" not in name:  # an embedding is looked up, not multiplied
        weights += p.numel()
weights += fresh.lm_head.weight.numel()  # the MTP module uses the output head once more
length = 256
print(
    f"weights in products, per token: {weights:,} of {sum(p.numel() for p in fresh.parameters()):,}"
)
print(f"6 operations for each: {6 * weights / 1e6:.1f} million per token")
package = training_flops_per_token(nano, length)
print(f"the package's count, with the attention's scores and values: {package / 1e6:.1f}")

# %% [markdown]
# The difference is the attention: it has products without weights, of queries with keys and of gates with values.
# Exercise 11.4 writes the full formula. Times the tokens per second, and divided by what the machine can do, it is the
# **model FLOPs utilisation**, MFU. What the machine can do we measure, by multiplying two large matrices:

# %%
peak = peak_flops(torch.device("cpu"), torch.float32)
batch = torch.randint(0, nano.vocab_size, (4, length + 1))
optimizer = build_optimizer(fresh, 1e-3)
seconds = []
for _ in range(4):
    started = time.perf_counter()
    losses = fresh(batch[:, :-1], batch[:, 1:], keep_logits=False).losses
    optimizer.zero_grad()
    (losses["main"] + 0.3 * losses["mtp"]).backward()
    clip_gradients(fresh)
    optimizer.step()
    seconds.append(time.perf_counter() - started)
speed = batch[:, 1:].numel() / min(seconds)
print(
    f"here and now: {speed:,.0f} tokens per second, {peak / 1e9:.0f} GFLOP/s in one large product"
)
print(f"MFU = {speed * package / peak:.0%}")

# %% [markdown]
# It never comes near all of it: norms, routing, softmax and the optimizer read and write memory and count as nothing.
# For the report one can do the same on paper. At 180K GPU hours per trillion tokens a GPU reads 1,543 tokens
# per second, and with six operations for each of 37B active parameters that makes 343 TFLOP/s.
#
# ### What must a checkpoint hold?
#
# A run of two months will be interrupted. To go on as if nothing had happened, the next step must find all that it
# would have found. Here are three runs of the tiny model: one goes through; the second is told to stop on the way;
# the third continues the second.

# %%
whole = train(settings("whole"), progress=False)
done = []
broken = train(
    settings("broken"), progress=False, on_step=done.append, should_stop=lambda: len(done) == 15
)
forged = new_folder("forged")
shutil.copytree(broken.folder, forged)  # a copy of the stopped run, for later
print(
    f"stopped: {broken.stopped}, after step {broken.steps}; saved as {broken.checkpoint.name}, with"
)
for file in sorted(broken.checkpoint.iterdir()):
    print(f"  {file.name:30} {file.stat().st_size:>9,} bytes")
state = load_file(broken.checkpoint / "training_state.safetensors")
print("in the training state:", sorted({name.split("/")[0] for name in state}))
print("its numbers:", json.loads((broken.checkpoint / "training_state.json").read_text()))

# %%
continued = train(settings("broken", resume=True), progress=False)


def main_losses(run):
    return [line["losses"]["main"] for line in read_metrics(run.folder)]


pairs = list(zip(main_losses(whole), main_losses(continued), strict=True))
print(f"continued after step {continued.resumed_from}")
print(
    f"steps with exactly the same loss, to the last bit: {sum(a == b for a, b in pairs)} of {len(pairs)}"
)

# %% [markdown]
# The list is short: the weights with the routing biases, $m$ and $v$ of each, how many steps were done and how many
# sequences were read, and the states of the random generators. The step gives the place on the schedule, the sequences
# give the next batch, because the order of the data follows from the seed alone.
#
# The other file, `complete.json`, is written last and holds a fingerprint of each of the others. A process can be
# killed while it saves; whatever is not whole is not used, and the checkpoint before it stands. So to forge a
# checkpoint, as we need to now, we must forge its fingerprint, too.

# %%
checkpoint = forged / "checkpoints" / broken.checkpoint.name
file = checkpoint / "training_state.safetensors"
zeroed = {
    name: torch.zeros_like(value) if name.startswith("exp_avg") else value
    for name, value in state.items()
}
save_file(zeroed, file)
marker = json.loads((checkpoint / "complete.json").read_text())
marker["files"][file.name] = {
    "bytes": file.stat().st_size,
    "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
}
(checkpoint / "complete.json").write_text(json.dumps(marker))
forgetful = train(settings("forged", resume=True), progress=False)

figure = Picture(*style.SIZE, layout="constrained")
axes = figure.subplots()
for (name, run), (colour, line, _) in zip(
    (("never stopped", whole), ("continued without m and v", forgetful)), style.STYLES, strict=False
):
    axes.plot(range(1, 41), main_losses(run), color=colour, linestyle=line, label=name)
axes.axvline(15, color=style.GREY, linewidth=1)
axes.set(xlabel="step", ylabel="main loss")
axes.legend()
figure

# %% [markdown]
# *In words: two lines that are one up to the break, a vertical line. What they do from there is printed under Reveal.*

# %% [markdown]
# ## Reveal

# %%
marks = guess_1.sketch.x
heights = [schedule.learning_rate(min(x * 1e12 / TOKENS, 1.0), 1.0) for x in marks]
guess_1.reveal(
    heights, "constant for 10T tokens, then a cosine to a tenth, and less for the very last"
)

# %%
steps, read = 0, 0
while read < TOKENS:
    batch_size = 3072 + (15360 - 3072) * min(read / 469e9, 1)  # grows linearly in tokens
    read += batch_size * 4096
    steps += 1
guess_2.reveal(steps, f"full batches alone would make {TOKENS / (15360 * 4096):,.0f}")

# %%
gaps = [b - a for a, b in zip(main_losses(whole), main_losses(forgetful), strict=True)][15:]
first = next(number for number, gap in enumerate(gaps) if gap)
worst = max(range(len(gaps)), key=lambda number: gaps[number])
print(
    f"first loss that differs: step {16 + first}; worst: step {16 + worst}, by {gaps[worst]:+.3f}"
)
print(
    f"at the end: {gaps[-1]:+.3f}; on held-out text {whole.bits_per_byte['all']:.3f} bits per byte",
    end="",
)
print(f" and {forgetful.bits_per_byte['all']:.3f} without the means")
guess_3.reveal("b" if first else "c", "the loss of a step is taken before the step is made")

# %% [markdown]
# The first loss after the break comes from weights that are all there. Only the step that follows is another one, and
# every loss after it. Read the last line before you call that damage: so short a run may well end level, or ahead by
# luck. What is lost for certain is that it is the same run, and with it every test that compares two runs bit for bit.
# Exhibit 11.B shows a case where the harm is plain.

# %% [markdown]
# ## Check against the package
#
# Our `adamw` beside torch's, five steps long; then clipping, the number of steps and the operations per token beside
# the package's.

# %%
torch.manual_seed(1)
start = torch.randn(7, 5)
theirs = torch.nn.Parameter(start.clone())
reference = torch.optim.AdamW([theirs], lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
ours, m, v = start, torch.zeros(7, 5), torch.zeros(7, 5)
for step in range(1, 6):
    gradient = torch.randn(7, 5)
    theirs.grad = gradient
    reference.step()
    ours, m, v = adamw(ours, gradient, m, v, step, 0.02)
print(f"max |diff| against torch.optim.AdamW: {(ours - theirs).abs().max():.1e} (tolerance 1e-06)")

before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
share = min(1.0, 1.0 / norm)
package_norm = clip_gradients(model).item()
difference = max(
    (before[name] * share - p.grad).abs().max().item()
    for name, p in model.named_parameters()
    if p.grad is not None
)
print(f"max |diff| against clip_gradients: {difference:.1e} (tolerance 1e-05)")
difference = abs(norm / package_norm - 1)
print(f"max |diff| against the norm that it returns, relative: {difference:.1e} (tolerance 1e-05)")
difference = abs(steps / schedule.REPORT_STEPS - 1)
print(f"max |diff| against schedule.REPORT_STEPS, relative: {difference:.1e} (tolerance 1e-04)")
difference = abs(weights / matmul_parameters(nano) - 1)
print(f"max |diff| against matmul_parameters, relative: {difference:.1e} (tolerance 1e-05)")

# %% [markdown]
# ## Play
#
# ### Watch a run
#
# This is `nano` on the course's own text, for a short run. It trains in the background: the cell comes back at once,
# and the dashboard fills. In Lab, press *Stop* on the way, look at the numbers, then *Continue*. (The first time, the
# text has to be cut into tokens.)

# %%
dashboard = Dashboard(
    TrainConfig(
        out=new_folder("nano"), preset="nano", steps=80, eval_every=20, eval_bytes=20_000, routing_every=2,
        baselines=False, device="cpu",
    )
)  # fmt: skip
dashboard.start()
dashboard

# %% [markdown]
# The next cell waits for it, so that nothing else takes the machine's time, for two minutes at most. `await` leaves the
# kernel free to hear the *Stop* button meanwhile.

# %%
result = await dashboard.until_end(120)  # noqa: F704
if result is None:
    dashboard.stop()
    result = await dashboard.until_end()  # noqa: F704
print(dashboard.summary())
dashboard.picture()

# %% [markdown]
# *In words: the lines above the picture.*
#
# Things to look at: does MTP have the higher loss of the two, and why must it (lesson 09)? In which layer does balance
# take longest, and what does its routing bias do meanwhile (lesson 07)? What becomes of the loss when the learning rate
# begins to fall? The folder of any run can be looked at the same way: `Dashboard(run="runs/nano")`.
#
# ### With experts, or without
#
# `ModelConfig.dense_twin()` has one dense network in the place of the experts, as wide as the experts that a token
# uses. `dense_total()` has one as wide as all of them.

# %%
pair = {
    "mixture of experts": nano,
    "dense twin": nano.dense_twin(),
    "dense, equal total": nano.dense_total(),
}
print(f"{'':20}{'parameters':>12}{'active':>12}{'operations per token':>23}")
for name, cfg in pair.items():
    count = count_parameters(cfg)
    operations = training_flops_per_token(cfg, 128) / 1e6
    print(f"{name:20}{count.total:12,}{count.active_without_embedding:12,}{operations:21.1f} M")

# %% [markdown]
# Now the first two on the same text in the same order, equally many steps. Held-out text decides.

# %%
finished = {}
for name in ("mixture of experts", "dense twin"):
    short = TrainConfig(
        out=new_folder(name.replace(" ", "-")), preset="nano", model=pair[name], steps=60, seq_len=128,
        batch_tokens=512, eval_bytes=20_000, baselines=False, device="cpu",
    )  # fmt: skip
    used = time.process_time()
    finished[name] = train(short, progress=False)
    used = time.process_time() - used
    print(
        f"{name:20} {finished[name].bits_per_byte['all']:.3f} bits per byte after {finished[name].steps} steps, "
        f"{used:.0f} s of machine time, measurement included"
    )

# %%
ahead = (
    finished["mixture of experts"].bits_per_byte["all"]
    - finished["dense twin"].bits_per_byte["all"]
)
answer = "b" if abs(ahead) <= 0.02 else ("a" if ahead < 0 else "c")
guess_4.reveal(answer, f"the mixture of experts minus the dense twin: {ahead:+.3f} bits per byte")

# %% [markdown]
# One seed and a minute: a look and no proof. And the table above hides a price. Equal operations are not equal time:
# sorting tokens to experts, and many small products in place of one large one, cost time that the count does not see.
# Longer runs of the same pair, with several seeds, were kept:

# %%
if (data_dir() / "results" / "twins.json").is_file():
    twins = load_lab("twins")
    print(
        f"{twins['steps']} steps of the first, seeds {twins['seeds']}; bits per byte on held-out text:"
    )
    for name, arm in twins["arms"].items():
        found = twins["summary"][name]["bits_per_byte"]["all"]
        time_of = (
            ""
            if arm["step_time"] is None
            else f", a step takes {arm['step_time']:.2f} of the first's time"
        )
        print(
            f"  {name:30} {found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f}), "
            f"{arm['steps']} steps{time_of}"
        )
else:
    print("no kept results: `python tests/benchmarks/run.py twins --keep` trains the pairs")

# %% [markdown]
# Read it in two ways: at equal steps it says what is learned from equal text, at equal time what is learned for equal
# money. The report's claim is about the second, at a size where experts fill whole machines. A model that trains in
# minutes has experts so small that the time goes into moving tokens, and its text is so short that extra parameters
# have little to remember. So whatever these lines say, they say it about this size.

# %% [markdown]
# ## Exercises
#
# Write your code in the cell that opens with `# Exercise`, run it, then run the cell under it.


# %% tags=["exercise"]
# Exercise 11.1 (5 minutes): clip a list of gradients to a norm over all of them together.
def clipped(gradients, limit):
    """gradients: list of tensors of any shape -> the list, scaled down to norm `limit` if it is above."""
    ...  # your code here


# %% tags=["check"]
# Stuck? exercise("11.1").hint(), and in the end exercise("11.1").solution()
exercise("11.1").check(clipped)


# %% tags=["exercise"]
# Exercise 11.2 (15 minutes): one whole step: clip to norm 1, then AdamW. Only tensors of two or more dimensions decay.
def optimizer_step(weights, gradients, ms, vs, step, lr):
    """Four lists of tensors, weights with their gradients, m and v; step counts from 1 -> list of new weights."""
    ...  # your code here


# %% tags=["check"]
exercise("11.2").check(optimizer_step)

# %% [markdown]
# The schedule in numbers (§4.2): linear warm-up from zero to 2.2e-4 in the first 2K steps; constant until 10T tokens; a
# cosine to 2.2e-5 over the next 4.3T; then 2.2e-5 for 333B tokens and 7.3e-6, the last rate, for 167B.


# %% tags=["exercise"]
# Exercise 11.3 (10 minutes): the learning rate of the report. With the warm-up over, only the tokens matter.
def report_rate(step, trillions):
    """step: counted from 1; trillions: tokens seen, in units of 1e12 -> the learning rate."""
    ...  # your code here


# %% tags=["check"]
exercise("11.3").check(report_rate)


# %% tags=["exercise"]
# Exercise 11.4 (10 minutes): MFU in training. Do not forget the attention; a token sees itself and what is before it.
def mfu(tokens_per_second, weights, layers, heads, key_width, value_width, length, peak):
    """weights: in products, per token; key_width, value_width: of a head; length: of a sequence -> share of peak."""
    ...  # your code here


# %% tags=["check"]
exercise("11.4").check(mfu)

# %% [markdown]
# A batch that does not fit into memory goes through in parts, and their gradients add up. The parts need not be equally
# long, and a target of `-100` means: nothing is asked here.


# %% tags=["exercise"]
# Exercise 11.5 (12 minutes): the loss of the whole batch. The checker looks at the gradients, too.
def batch_loss(logits, targets):
    """logits: list of [T_i, V]; targets: list of [T_i], -100 for nothing -> mean loss, no dimensions."""
    ...  # your code here


# %% tags=["check"]
exercise("11.5").check(batch_loss)

# %% [markdown]
# The smallest run there is: one tensor, whose gradient at each step is `weight - batch.mean(0)`, and `adamw` from
# above.


# %% tags=["exercise"]
# Exercise 11.6 (12 minutes): continue it from a checkpoint, to the end of the batches.
def go_on(saved, batches, rates):
    """saved: weight, m, v, step (done); step s, from 1 on, uses batches[s - 1], rates[s - 1] -> last weight."""
    ...  # your code here


# %% tags=["check"]
exercise("11.6").check(go_on)

# %% [markdown]
# ## Bug museum
#
# ### Exhibit 11.A: decay inside the gradient

# %%
exhibit("11.A").show()

# %% tags=["predict"]
exhibit("11.A").predict()

# %%
exhibit("11.A").run()

# %%
exhibit("11.A").diagnose()

# %% [markdown]
# ### Exhibit 11.B: only the weights were saved

# %%
exhibit("11.B").show()

# %% tags=["predict"]
exhibit("11.B").predict()

# %%
exhibit("11.B").run()

# %%
exhibit("11.B").diagnose()

# %% [markdown]
# ## What the report says
#
# §4.2 in our own words: AdamW with beta 0.9 and 0.95 and a weight decay of 0.1; gradients clipped to norm 1; sequences
# of 4K tokens; 14.8T tokens of pre-training. The learning rate warms up to 2.2e-4 over 2K steps, and the rest is the
# picture above. The batch grows from 3072 to 15360 sequences over the first 469B tokens. The speed of the bias is 0.001
# until 14.3T tokens and 0 for the last 500B; the weight of the MTP loss is 0.3, and 0.1 for the last 4.8T tokens.
#
# It says that in all of pre-training there was no loss spike that could not be recovered from, and that the run was
# never rolled back. The full training took 2.788M GPU hours on H800.
#
# It does not say: which epsilon, whether norms decay, in which shape the batch grows, what became of a step whose loss
# was no number. The package's choices for these stand in `dsv3_mini.train.optimizer` and `dsv3_mini.train.schedule`.

# %% [markdown]
# ## Recap
#
# * AdamW: two running means a weight, corrected for their start at zero. Their quotient has no unit, so one learning
#   rate serves all. The decay goes past both.
# * Clipping is one factor for all gradients together, taken from one norm.
# * A schedule is a function of the share of tokens seen: one number, the length, scales it.
# * MFU: what the model needs, over what the machine could do. Say what you count.
# * A checkpoint that one trains from holds weights, routing biases, both means, and where the run stood. The test for
#   it is simple: the same losses as without a break.
# * Equal steps and equal time are two comparisons, and experts may win one and lose the other.

# %%
draw_idea_graph(highlight=["pretraining"])

# %% [markdown]
# *In words: the idea graph of the report, with the node of the pre-training schedule filled. It needs multi-token
# prediction and the balance without a loss; cost and post-training follow from it.*
#
# **Next:** lesson 12. The MTP module is trained and could go. It stays, and makes decoding faster.
