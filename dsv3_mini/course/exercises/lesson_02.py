"""The exercises of lesson 02, the KV cache.

Shapes: B rows, T new tokens, S slots of the cache, H query heads, G key/value heads, K width of a head.
"""

# Solutions carry no types: they are shown to learners, whose stubs have none.
# mypy: disallow-untyped-defs=False, check-untyped-defs=False

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from dsv3_mini.course.checking import Case, Exercise, Mistake


def _whole(generator: Generator, low: int, high: int) -> int:
    """A random whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _randn(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


# -- 2.1: how long a text fits? --


def longest_context(memory, layers, kv_heads, head_dim, texts=1):
    per_token = 2 * kv_heads * head_dim * layers * 2  # key and value; 2 bytes per number
    return int(memory // (per_token * texts))


def _memories(generator: Generator) -> list[Case]:
    def sizes() -> tuple[int, int, int]:
        return _whole(generator, 20, 90), _whole(generator, 1, 16), 8 * _whole(generator, 5, 20)

    memory = _whole(generator, 10_000_000_000, 90_000_000_000)
    return [
        Case((memory, *sizes())),
        Case((memory, *sizes()), {"texts": _whole(generator, 3, 40)}, note="several texts"),
        Case((8e10, 61, 128, 128), note="61 layers, 128 heads of width 128 and 80e9 bytes"),
        Case((_whole(generator, 100, 500), 61, 128, 128), note="memory for less than one token"),
    ]


LONGEST_CONTEXT = Exercise(
    id="2.1",
    idea="kv_cache",
    title="how long a text fits into the memory?",
    minutes=5,
    answer="longest_context",
    reference=longest_context,
    cases=_memories,
    mistakes=(
        Mistake(
            "a factor of two",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(
                memory // (2 * kv_heads * head_dim * layers * texts)
            ),
            "Twice too long: a factor is missing. Each token leaves a key and a value, and each number takes 2 bytes.",
        ),
        Mistake(
            "two factors of two",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (kv_heads * head_dim * layers * texts)),
            "Four times too long: two factors are missing. Each token leaves a key and a value, and each number takes "
            "2 bytes.",
        ),
        Mistake(
            "one layer",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (4 * kv_heads * head_dim * texts)),
            "Every layer keeps keys and values of its own: the layers are missing.",
        ),
        Mistake(
            "one text",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (4 * kv_heads * head_dim * layers)),
            "Right for one text. Several texts share the memory.",
        ),
        Mistake(
            "all texts together",
            lambda memory, layers, kv_heads, head_dim, texts=1: (
                int(memory // (4 * kv_heads * head_dim * layers)) * texts
            ),
            "With more texts each of them should get less room, not more.",
        ),
        Mistake(
            "one head",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (4 * head_dim * layers * texts)),
            "Each key/value head keeps keys and values of its own: the heads are missing.",
        ),
        Mistake(
            "one number a head",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(memory // (4 * kv_heads * layers * texts)),
            "A key is a vector of head_dim numbers: the width of a head is missing.",
        ),
        Mistake(
            "four bytes",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(
                memory // (8 * kv_heads * head_dim * layers * texts)
            ),
            "Half as long as it should be: a factor of two too many. One key, one value, 2 bytes per number.",
        ),
        Mistake(
            "bytes of a token",
            lambda memory, layers, kv_heads, head_dim, texts=1: 4 * kv_heads * head_dim * layers,
            "That is the bytes that one token takes. How many tokens fit into the memory?",
        ),
        Mistake(
            "bits",
            lambda memory, layers, kv_heads, head_dim, texts=1: int(
                memory // (32 * kv_heads * head_dim * layers * texts)
            ),
            "Eight times too short: memory is given in bytes, and you count the cache in bits.",
        ),
        Mistake(
            "not a whole number",
            lambda memory, layers, kv_heads, head_dim, texts=1: memory / (4 * kv_heads * head_dim * layers * texts),
            "The number is right, but it is no whole number of tokens. A part of a token cannot be kept: round down.",
        ),
        Mistake(
            "rounded up",
            lambda memory, layers, kv_heads, head_dim, texts=1: math.ceil(
                memory / (4 * kv_heads * head_dim * layers * texts)
            ),
            "Rounded up, the last token does not fit any more. Round down.",
        ),
    ),
    hints=(
        "How many numbers does one token leave in one layer? The formula of the lesson says it, with G = kv_heads and "
        "K = head_dim.",
        "From there to bytes in all layers: times the layers, times 2 bytes. Then share the memory among the texts.",
        "a // b divides and rounds down; int(...) makes a whole number of 20011.0.",
    ),
    after="This is the first question of everybody who serves a model: the weights are fixed, the rest is cache.",
)


# -- 2.2: hand each query head its key/value head --


def expand_groups(k, heads):
    B, G, S, K = k.shape
    shared_by = heads // G
    k = k[:, :, None].expand(B, G, shared_by, S, K)  # no copy yet
    return k.reshape(B, heads, S, K)


def _groups(generator: Generator) -> list[Case]:
    B, S, K = 2, _whole(generator, 7, 9), _whole(generator, 10, 12)
    return [
        Case((_randn(generator, B, 3, S, K), 3 * _whole(generator, 2, 4)), note="three groups"),
        Case((_randn(generator, B, 1, S, K), 5), note="one group (MQA)"),
        Case((_randn(generator, B, 4, S, K), 4), note="as many groups as heads (MHA)"),
        Case((_randn(generator, 1, 2, 1, K), 8), note="one slot"),
    ]


EXPAND_GROUPS = Exercise(
    id="2.2",
    idea="kv_cache",
    title="hand each query head its key/value head",
    minutes=5,
    answer="expand_groups",
    reference=expand_groups,
    cases=_groups,
    dims="B heads S K",
    mistakes=(
        Mistake(
            "groups take turns",
            lambda k, heads: k.repeat(1, heads // k.shape[1], 1, 1),
            "The groups alternate: heads 0, 1, 2, ... read groups 0, 1, 2, 0, 1, 2, ... as with `repeat`. Neighbours "
            "should share.",
        ),
        Mistake(
            "tokens repeated",
            lambda k, heads: k.repeat_interleave(heads // k.shape[1], dim=2).reshape(
                k.shape[0], heads, k.shape[2], k.shape[3]
            ),
            "Each token stands several times in a row inside a head, and the later tokens of the group are in the next "
            "head. Every head should have all slots, each of them once.",
        ),
        Mistake(
            "all read the first group",
            lambda k, heads: k[:, :1].expand(-1, heads, -1, -1),
            "All heads read group 0.",
        ),
        Mistake(
            "groups in reverse order",
            lambda k, heads: expand_groups(k, heads).flip(1),
            "The groups stand in reverse order: head 0 should read group 0.",
        ),
        Mistake(
            "heads as they are",
            lambda k, heads: k,
            "There are still only G heads: each one should stand there heads / G times.",
        ),
    ),
    hints=(
        "Each group should stand heads / G times in a row before the next one comes.",
        "Make a new axis behind G, of size heads / G, and join the two. Which of both must come first so that "
        "neighbours share?",
        "k[:, :, None] has the shape [B, G, 1, S, K]; expand makes the 1 larger without copying; reshape joins G and "
        "the new axis.",
    ),
    after="repeat_interleave does the same. That repeat gives the same shape makes it one of the quiet bugs.",
)


# -- 2.3: several new tokens at once --


def chunk_mask(start, new):
    position = torch.arange(start, start + new)  # of the new tokens
    slot = torch.arange(start + new)
    return slot[None, :] <= position[:, None]  # [new, start + new]


def _ones(start: int, new: int) -> Tensor:
    return torch.ones(new, start + new, dtype=torch.bool)


def _chunks(generator: Generator) -> list[Case]:
    start = _whole(generator, 3, 6)
    return [
        Case((start, _whole(generator, 3, 5)), note="several new tokens behind a cache"),
        Case((0, _whole(generator, 3, 5)), note="an empty cache"),
        Case((start, 1), note="one new token"),
    ]


CHUNK_MASK = Exercise(
    id="2.3",
    idea="kv_cache",
    title="the mask for several new tokens behind a cache",
    minutes=10,
    answer="chunk_mask",
    reference=chunk_mask,
    cases=_chunks,
    dims="new slot",
    mistakes=(
        Mistake(
            "no mask",
            _ones,
            "Every new token sees every slot, so the first new tokens see those after them: their future.",
        ),
        Mistake(
            "counts from the first slot",
            lambda start, new: _ones(start, new).tril(),
            "The first new token sees slot 0 only, as if it stood at the beginning of the text. It stands behind "
            "everything in the cache.",
        ),
        Mistake(
            "not itself",
            lambda start, new: _ones(start, new).tril(start - 1),
            "No new token sees itself: the first one stands in slot `start`.",
        ),
        Mistake(
            "one too far",
            lambda start, new: _ones(start, new).tril(start + 1),
            "The mask is off by one: each new token sees the one right after itself.",
        ),
        Mistake(
            "without the cache",
            lambda start, new: torch.ones(new, new, dtype=torch.bool).tril(),
            "The mask has the new tokens only. What they look at includes the cache: start + new slots.",
        ),
        Mistake(
            "new tokens alone",
            lambda start, new: _ones(start, new).tril(start).triu(start),
            "The new tokens see themselves and nothing of the cache.",
        ),
        Mistake(
            "new tokens first",
            lambda start, new: torch.cat([_ones(0, new).tril(), torch.ones(new, start, dtype=torch.bool)], dim=1),
            "The columns begin with the new tokens. The slots of the cache come first: 0 to start - 1.",
        ),
        Mistake(
            "strangers to each other",
            lambda start, new: (
                (torch.arange(start + new)[None] < start)
                | (torch.arange(start + new)[None] == torch.arange(start, start + new)[:, None])
            ),
            "The new tokens see the cache and themselves, but not each other. The second one may see the first.",
        ),
    ),
    hints=(
        "Which position has the first new token, and which slot is its own?",
        "As in lesson 01: a slot may be seen if it is not later than the position of the token that asks. Here rows "
        "and columns count from different places.",
        "Rows: torch.arange(start, start + new). Columns: torch.arange(start + new). Compare with <=.",
    ),
    after="Long prompts are read in pieces with it, and in lesson 12 it checks a draft of several tokens at once.",
)


# -- 2.4: texts of different lengths, one buffer --


def decode_batch(q, k, v, lengths):
    slot = torch.arange(k.shape[2])
    written = slot[None, :] < lengths[:, None]  # [B, S]
    scores = (k @ q[..., None]).squeeze(-1) / math.sqrt(q.shape[-1])  # [B, H, S]
    shares = scores.masked_fill(~written[:, None], float("-inf")).softmax(-1)
    return (shares[:, :, None] @ v).squeeze(2)  # [B, H, 1, S] @ [B, H, S, K] -> [B, H, K]


def decode_batch__all_slots(q, k, v, lengths):
    # Slots beyond lengths hold zeros, and zeros add nothing.
    scores = (k @ q[..., None]).squeeze(-1) / math.sqrt(q.shape[-1])  # [B, H, S]
    shares = scores.softmax(-1)
    return (shares[:, :, None] @ v).squeeze(2)  # [B, H, 1, S] @ [B, H, S, K] -> [B, H, K]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (k @ q[..., None]).squeeze(-1) / math.sqrt(q.shape[-1])  # [B, H, S]


def _up_to(k: Tensor, lengths: Tensor) -> Tensor:
    return (torch.arange(k.shape[2]) < lengths[:, None])[:, None]  # [B, 1, S]


def _mean_of(shares: Tensor, v: Tensor) -> Tensor:
    return (shares[..., None] * v).sum(2)


def _buffers(generator: Generator) -> list[Case]:
    cases = []
    for B, lengths, note in (
        (3, [_whole(generator, 5, 6), 4, 7], "slots that hold an older text"),
        (2, [3, 9], "empty slots, which hold zeros"),
        (1, [1], "a single token"),
    ):
        S, H, K = 12, 4, 10
        q, k, v = _randn(generator, B, H, K), _randn(generator, B, H, S, K), _randn(generator, B, H, S, K)
        if "zeros" in note:
            for row, length in enumerate(lengths):
                k[row, :, length:], v[row, :, length:] = 0.0, 0.0
        cases.append(Case((q, k, v, torch.tensor(lengths)), note=note))
    return cases


DECODE_BATCH = Exercise(
    id="2.4",
    idea="kv_cache",
    title="one decode step for texts of different lengths",
    minutes=10,
    answer="decode_batch",
    reference=decode_batch,
    cases=_buffers,
    dims="B H K",
    mistakes=(
        Mistake(
            "all slots",
            decode_batch__all_slots,
            "Slots that hold nothing of this text take part: `lengths` is not used. Also a slot full of zeros gets a "
            "share, for a score of 0 is not a share of 0.",
        ),
        Mistake(
            "zero scores",
            lambda q, k, v, lengths: _mean_of(_scores(q, k).masked_fill(~_up_to(k, lengths), 0.0).softmax(-1), v),
            "The slots beyond the length get the score 0, and the softmax makes a share of it. Which score gives no "
            "share at all?",
        ),
        Mistake(
            "mask behind the softmax",
            lambda q, k, v, lengths: _mean_of(_scores(q, k).softmax(-1) * _up_to(k, lengths), v),
            "The shares of the slots beyond the length are set to zero, but behind the softmax: what remains does not "
            "sum to one.",
        ),
        Mistake(
            "zeros for a mask",
            lambda q, k, v, lengths: decode_batch__all_slots(
                q, k * _up_to(k, lengths)[..., None], v * _up_to(k, lengths)[..., None], lengths
            ),
            "Keys and values beyond the length are set to zero. Then their scores are 0, and a score of 0 still gets a "
            "share.",
        ),
        Mistake(
            "wrong way round",
            lambda q, k, v, lengths: _mean_of(_scores(q, k).masked_fill(_up_to(k, lengths), -math.inf).softmax(-1), v),
            "The wrong way round: the slots of the text are hidden, and the others are read.",
        ),
        Mistake(
            "first slot alone",
            lambda q, k, v, lengths: v[:, :, 0],
            "Your output is the value of slot 0 alone: a causal mask (or is_causal=True) for one query counts that "
            "query as position 0.",
        ),
        Mistake(
            "one slot too many",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths + 1),
            "One slot too many: with a length of 5 the slots 0 to 4 are written.",
        ),
        Mistake(
            "one slot too few",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths - 1),
            "One slot too few: the newest token is in the cache already, and does not see itself. (A text of one token "
            "then sees nothing, which gives NaN.)",
        ),
        Mistake(
            "longest of all",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths.max().expand(len(lengths))),
            "All rows are read up to the longest text. Each row has a length of its own.",
        ),
        Mistake(
            "shortest of all",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths.min().expand(len(lengths))),
            "All rows are read up to the end of the shortest text. Each row has a length of its own.",
        ),
        Mistake(
            "length of the first row",
            lambda q, k, v, lengths: decode_batch(q, k, v, lengths[:1].expand(len(lengths))),
            "All rows are read up to the length of row 0. Each row has a length of its own.",
        ),
        Mistake(
            "no scale",
            lambda q, k, v, lengths: decode_batch(q * math.sqrt(q.shape[-1]), k, v, lengths),
            "The scores are not divided by the square root of K.",
        ),
    ),
    hints=(
        "Exercise 1.3 did this for one text without empty slots. What has to happen to the scores of slots that hold "
        "nothing?",
        "A table says which slots of which row are written: torch.arange(S)[None, :] < lengths[:, None], of the shape "
        "[B, S].",
        "Set the scores of all other slots to -inf before the softmax. The scores are [B, H, S]: the table needs an "
        "axis for the heads, [:, None].",
    ),
    after="A server that answers many people at once does exactly this at every step.",
)


# -- 2.5: write, with a cache --


def write(model, prompt, new):
    cache = []
    scores = model(prompt, torch.arange(len(prompt)), cache)  # prefill
    written = [scores[-1].argmax()]
    while len(written) < new:
        position = len(prompt) + len(written) - 1  # tokens before it
        scores = model(written[-1][None], torch.tensor([position]), cache)  # decode
        written.append(scores[-1].argmax())
    return written


def write__position_of_the_step(model, prompt, new):
    cache = []
    scores = model(prompt, torch.arange(len(prompt)), cache)  # prefill
    written = [scores[-1].argmax()]
    while len(written) < new:
        newest = written[-1][None]
        scores = model(newest, torch.arange(len(newest)), cache)  # decode
        written.append(scores[-1].argmax())
    return written


def _write(model, prompt, new, offset=None, keep=True, again=False, pick=lambda scores: scores[-1].argmax()):
    """The solution with one of its parts changed."""
    cache = []
    written = [pick(model(prompt, torch.arange(len(prompt)), cache))]
    while len(written) < new:
        cache = cache if keep else []
        text = torch.stack([*prompt, *written]) if again else written[-1][None]
        start = 0 if again else (len(prompt) if offset is None else offset) + len(written) - 1
        written.append(pick(model(text, torch.arange(start, start + len(text)), cache)))
    return written


def _starts_from_the_prompt(model, prompt, new):
    cache, written = [], [prompt[-1]]
    model(prompt, torch.arange(len(prompt)), cache)
    for position in range(len(prompt), len(prompt) + new):
        written.append(model(written[-1][None], torch.tensor([position]), cache)[-1].argmax())
    return written[1:]


class Model:
    """One attention layer with random weights; it counts the tokens that it reads and keeps."""

    def __init__(self, generator: Generator, letters: int, width: int = 16, positions: int = 40) -> None:
        self.embed, self.places = _randn(generator, letters, width), _randn(generator, positions, width)
        self.w_q, self.w_k, self.w_v = (_randn(generator, width, width) / 4 for _ in range(3))
        self.head = _randn(generator, width, letters)
        self.read = self.kept = 0

    def __call__(self, tokens: Tensor, positions: Tensor, cache: list[Tensor]) -> Tensor:
        if not tokens.shape == positions.shape == (len(positions.flatten()),):
            shapes = f"{list(tokens.shape)} and {list(positions.shape)}"
            raise ValueError(f"the model wants tokens [T] and positions [T]; it was given the shapes {shapes}")
        if tokens.is_floating_point():
            raise ValueError("the model wants tokens, whole numbers; it was given scores")
        self.read += len(tokens)
        h = self.embed[tokens] + self.places[positions]
        k, v = h @ self.w_k, h @ self.w_v
        if cache:
            k, v = torch.cat([cache[0], k]), torch.cat([cache[1], v])
        cache[:] = [k, v]
        self.kept = max(self.kept, len(k))
        scores = h @ self.w_q @ k.T / math.sqrt(h.shape[-1])
        may_see = chunk_mask(len(k) - len(tokens), len(tokens))
        out = h / 4 + scores.masked_fill(~may_see, -math.inf).softmax(-1) @ v
        return out / out.norm(dim=-1, keepdim=True) @ self.head  # no row is louder than the others


def _prompts(generator: Generator) -> list[Case]:
    letters, seed = _whole(generator, 40, 50), _whole(generator, 0, 10**6)
    return [
        Case((seed, letters, torch.randint(letters, (length,), generator=generator), new), note=note)
        for length, new, note in (
            (_whole(generator, 4, 7), _whole(generator, 9, 12), "a prompt of several tokens"),
            (1, 6, "a prompt of one token"),
            (9, 1, "one token to write"),
            (11, 2, "two tokens to write"),
        )
    ]


def _run_write(answer, case):
    seed, letters, prompt, new = case.args
    model = Model(torch.Generator().manual_seed(seed), letters)
    written = answer(model, prompt, new)
    if isinstance(written, (list, tuple, Tensor)):
        written = [int(token) for token in written]
    # One token more than needed is no harm: many read the last one, too, although nobody asks what follows it.
    most = len(prompt) + new
    return {
        "tokens": written,
        "tokens read again": max(0, model.read - most),
        "tokens kept twice": max(0, model.kept - most),
    }


WRITE = Exercise(
    id="2.5",
    idea="kv_cache",
    title="let a model write, with a cache",
    minutes=15,
    answer="write",
    reference=write,
    cases=_prompts,
    use=_run_write,
    mistakes=(
        Mistake(
            "position of the step",
            write__position_of_the_step,
            "The first token is right, then it goes wrong: each decode step gives its token the position 0. The "
            "position of a token is the number of tokens before it.",
        ),
        Mistake(
            "positions without the prompt",
            lambda model, prompt, new: _write(model, prompt, new, offset=0),
            "The first token is right, then it goes wrong: the positions of the decode steps start again from 0, "
            "although the prompt stands before them.",
        ),
        Mistake(
            "one position too far",
            lambda model, prompt, new: _write(model, prompt, new, offset=len(prompt) + 1),
            "The positions of the decode steps are one too high. The first new token comes right behind the prompt: "
            "how many tokens are before it?",
        ),
        Mistake(
            "one position too low",
            lambda model, prompt, new: _write(model, prompt, new, offset=len(prompt) - 1),
            "The positions of the decode steps are one too low: the first new token gets the position that the last "
            "token of the prompt has already.",
        ),
        Mistake(
            "an empty cache at every step",
            lambda model, prompt, new: _write(model, prompt, new, keep=False),
            "The first token is right, then the model has forgotten everything: each decode step starts with an empty "
            "cache. The list of the prefill must go into every step.",
        ),
        Mistake(
            "no use of the cache",
            lambda model, prompt, new: _write(model, prompt, new, keep=False, again=True),
            "The tokens are right, but the model reads the whole text again for each of them. After the prefill, one "
            "new token a step is enough.",
        ),
        Mistake(
            "everything again into the cache",
            lambda model, prompt, new: _write(model, prompt, new, again=True),
            "Each step puts the whole text into the cache again, behind what is there, so that old tokens count "
            "several times. Give only the newest token to a decode step.",
        ),
        Mistake(
            "first scores",
            lambda model, prompt, new: _write(model, prompt, new, pick=lambda scores: scores[0].argmax()),
            "Already the first token is wrong: you read the scores of the first token of the prompt. What follows the "
            "prompt is said by its last token.",
        ),
        Mistake(
            "largest of all scores",
            lambda model, prompt, new: _write(model, prompt, new, pick=lambda scores: scores.argmax()),
            "The largest score is looked for in all rows. Only the last row says what follows the text.",
        ),
        Mistake(
            "without the first token",
            lambda model, prompt, new: write(model, prompt, new + 1)[1:],
            "The first new token is missing: the prefill already gives it, before any decode step.",
        ),
        Mistake(
            "last token of the prompt again",
            _starts_from_the_prompt,
            "The last token of the prompt is read a second time, as the first decode step. The prefill has read it: "
            "its last scores give the first new token.",
        ),
        Mistake(
            "prompt included",
            lambda model, prompt, new: [*prompt, *write(model, prompt, new)],
            "The prompt is part of what you return. Asked are the new tokens alone.",
        ),
    ),
    hints=(
        "Two parts: one call with the whole prompt (prefill), then one call for each further token (decode). The same "
        "list goes into all of them.",
        "After the prefill, scores[-1].argmax() is the first new token. The next call gets this token alone, as a "
        "tensor of shape [1].",
        "The position of the newest token is the number of tokens before it: those of the prompt and those written "
        "before it. It also comes as a tensor of shape [1].",
    ),
    after="This loop is what every chat program runs, and lessons 04, 05 and 12 make it cheaper.",
)

EXERCISES = (LONGEST_CONTEXT, EXPAND_GROUPS, CHUNK_MASK, DECODE_BATCH, WRITE)
