"""Speculative decoding with the MTP module (§2.2, "MTP in Inference"; §5.4.3).

A decoding step costs nearly the same for one token as for two, because most of it is reading weights and starting
operations. So somebody cheap guesses the next tokens, and the model reads all of them in one step: from its logits at
each of them it follows which guesses it would have made itself. Here the MTP module guesses. With t_n just chosen from
h_{n-1}, one round is

    draft     the module reads (h_{n-1}, t_n) and drafts t_{n+1}; for deeper drafts it goes on from its own state and
              its own draft, as if that state were h_n
    verify    the model reads t_n and the drafts in one forward pass
    accept    the drafts are kept up to the first that the rule below rejects
    bonus     one more token comes from the logits at the last one kept, so a round never gives less than one token
    roll back the slots of rejected drafts are cropped away in every layer; the module's own slots, made from its own
              states, are made anew from the true ones in the next round

Greedy: a draft is accepted if it is the model's most likely token. Sampled (Leviathan et al. 2023): a draft x, drawn
from the module's distribution q, is accepted with probability min(1, p(x) / q(x)); at the first rejection the token is
drawn from max(0, p - q), rescaled. Both leave what is generated as it would have been without drafts: the same tokens,
and the same distribution.

Shapes: B rows, k drafts, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsv3_mini.generate.fast import FastModel
from dsv3_mini.generate.prefill import Prefilled
from dsv3_mini.generate.sampling import next_token_distribution, sample

MAX_DRAFTS = 8


@dataclass(frozen=True)
class Round:
    """What one round did for one row."""

    row: int
    drafted: list[int]
    accepted: int  # of the drafts, from the first on
    bonus: int  # the token after them


@dataclass
class SpeculationStats:
    """How well the drafts did. `by_depth[j]`: of the drafts at depth j + 1, how many were made and accepted."""

    rounds: int = 0  # forward passes of the main model after the prefill, each for all rows
    row_rounds: int = 0  # the same, counted for each row that took part
    tokens: int = 0  # that came out of them
    by_depth: list[tuple[int, int]] = field(default_factory=list)

    @property
    def drafted(self) -> int:
        return sum(made for made, _ in self.by_depth)

    @property
    def accepted(self) -> int:
        return sum(kept for _, kept in self.by_depth)

    @property
    def acceptance(self) -> float:
        """Accepted first drafts over all first drafts: the report's acceptance rate. NaN without drafts."""
        made, kept = self.by_depth[0] if self.by_depth else (0, 0)
        return kept / made if made else float("nan")

    @property
    def tokens_per_forward(self) -> float:
        """Of one row. 1 without drafts."""
        return self.tokens / self.row_rounds if self.row_rounds else float("nan")

    def add(self, accepted: list[int], drafted: int) -> None:
        """One round: of `drafted` drafts in each row, so many were accepted."""
        self.rounds += 1
        self.row_rounds += len(accepted)
        self.tokens += sum(accepted) + len(accepted)
        for depth in range(drafted):
            if depth == len(self.by_depth):
                self.by_depth.append((0, 0))
            made, kept = self.by_depth[depth]
            # A draft behind a rejected one was never judged: it is not counted as made.
            judged = sum(a >= depth for a in accepted)
            self.by_depth[depth] = (made + judged, kept + sum(a > depth for a in accepted))


def accept_greedy(logits: Tensor, drafts: Tensor) -> tuple[Tensor, Tensor]:
    """logits [B, k + 1, V] at t_n and at each draft, drafts [B, k] -> drafts accepted [B], the token after them [B]."""
    wanted = logits.argmax(-1)  # what plain decoding would have said at each place
    accepted = (wanted[:, :-1] == drafts).long().cumprod(1).sum(1)
    return accepted, wanted.gather(1, accepted.unsqueeze(1)).squeeze(1)


def accept_sampled(
    p: Tensor, q: Tensor, drafts: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The rule of rejection sampling; gives drafts accepted [B] and the token after them [B].

    p [B, k + 1, V]: the model's distributions at t_n and at each draft. q [B, k, V]: those that the drafts [B, k] were
    drawn from.
    """
    chosen = drafts.unsqueeze(-1)
    ratio = (p[:, :-1].gather(-1, chosen) / q.gather(-1, chosen)).squeeze(-1)  # q of a token that was drawn is not 0
    chance = torch.rand(drafts.shape, generator=generator, device=drafts.device)
    accepted = (chance < ratio).long().cumprod(1).sum(1)
    # What p has more than q at the first rejected draft; after the last draft nothing was drawn, and all of p is left.
    left = torch.cat((p[:, :-1] - q, p[:, -1:]), dim=1).clamp_min(0)
    left = left.gather(1, accepted[:, None, None].expand(-1, 1, p.shape[-1])).squeeze(1)
    return accepted, torch.multinomial(left, 1, generator=generator).squeeze(1)


class Speculator:
    """Rounds of drafting and verifying for prompts that have been read.

    depth: drafts in a round, at most. confidence: drafting ends early where the product of the module's greatest
    probabilities has fallen below this in every row (0: never); a round may then have no draft at all. It is decided
    by the distribution before a draft is drawn: dropping drafts *because of what was drawn* would bias the result.
    """

    def __init__(
        self,
        engine: FastModel,
        read: Prefilled,
        depth: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        confidence: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        assert read.drafts is not None
        self.engine, self.cache, self.drafts_cache = engine, read.cache, read.drafts
        self.depth, self.confidence = depth, confidence
        self.temperature, self.top_p, self.generator = temperature, top_p, generator
        self.first = sample(engine.head(read.hidden), temperature, top_p, generator)  # [B] t_n, needs no draft
        # What the module has not read yet: the states h and the tokens that follow them, by row.
        self.states, self.following = read.hidden.unsqueeze(1), self.first.unsqueeze(1)  # [B, M, D], [B, M]
        self.unread = [1] * len(self.first)

    def round(self, most: int) -> tuple[Tensor, list[int], Tensor]:
        """One round with at most `most` drafts: drafts [B, k], how many of them were accepted, the bonus tokens [B]."""
        drafts, q = self._draft(min(self.depth, most))
        start = list(self.cache.lengths)
        newest = self.following[torch.arange(len(start)), [n - 1 for n in self.unread]]
        tokens = torch.cat((newest.unsqueeze(1), drafts), dim=1)
        hidden = self.engine.hidden_states(tokens, self.cache)  # [B, k + 1, D]
        logits = self.engine.head(hidden)
        if self.temperature == 0:
            accepted, bonus = accept_greedy(logits, drafts)
        else:
            p = next_token_distribution(logits.flatten(0, 1), self.temperature, self.top_p).view_as(logits)
            accepted, bonus = accept_sampled(p, q, drafts, self.generator)
        counts = accepted.tolist()
        self.cache.crop([before + 1 + kept for before, kept in zip(start, counts, strict=True)])
        self.unread = [kept + 1 for kept in counts]
        longest = max(self.unread)
        self.states = hidden[:, :longest]
        following = torch.cat((drafts, bonus.unsqueeze(1)), dim=1)
        following = following.scatter(1, accepted.unsqueeze(1), bonus.unsqueeze(1))  # behind the last accepted one
        self.following = following[:, :longest]
        return drafts, counts, bonus

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        self.cache.select(rows)
        self.drafts_cache.select(rows)
        self.states, self.following = self.states[rows], self.following[rows]
        self.unread = [self.unread[row] for row in rows]

    def _draft(self, depth: int) -> tuple[Tensor, Tensor]:
        """Drafts [B, k] and, when sampling, the distributions they were drawn from [B, k, V]; k <= depth."""
        cache = self.drafts_cache
        read = [length + unread for length, unread in zip(cache.lengths, self.unread, strict=True)]
        states = self.engine.draft_states(self.following, self.states, cache)
        cache.crop(read)  # of shorter rows the filling
        rows = torch.arange(len(read), device=states.device)
        state = states[rows, [unread - 1 for unread in self.unread]]  # [B, D]
        drafts: list[Tensor] = []
        distributions: list[Tensor] = []
        sure = torch.ones(len(read), device=states.device)
        for j in range(depth):
            logits = self.engine.head(state)
            if self.confidence:
                sure = sure * logits.float().softmax(-1).amax(-1)
                if bool((sure < self.confidence).all()):
                    break
            if self.temperature == 0:
                token = logits.argmax(-1)
            else:
                distributions.append(next_token_distribution(logits, self.temperature, self.top_p))
                token = torch.multinomial(distributions[-1], 1, generator=self.generator).squeeze(1)
            drafts.append(token)
            if j + 1 < depth:
                state = self.engine.draft_states(token.unsqueeze(1), state.unsqueeze(1), cache)[:, -1]
        cache.crop(read)  # what was made from drafts is made anew from what becomes of them
        width = self.engine.cfg.vocab_size
        empty = states.new_empty(len(read), 0, dtype=torch.long)
        q = torch.stack(distributions, dim=1) if distributions else states.new_empty(len(read), 0, width)
        return (torch.stack(drafts, dim=1) if drafts else empty), q


def speculative_steps(
    speculator: Speculator,
    max_new_tokens: int,
    eos_token_id: int | None,
    stats: SpeculationStats,
    on_round: Callable[[Round], None] | None = None,
) -> Iterator[list[list[int]]]:
    """New tokens by row, round after round, the first without drafts. Rows that have ended leave the batch."""
    rows = len(speculator.first)
    made = [0] * rows
    alive = list(range(rows))
    news = [[token] for token in speculator.first.tolist()]
    while True:
        step: list[list[int]] = [[] for _ in range(rows)]
        going = []
        for place, (row, tokens) in enumerate(zip(alive, news, strict=True)):
            tokens = tokens[: max_new_tokens - made[row]]
            if eos_token_id in tokens:
                tokens = tokens[: tokens.index(eos_token_id) + 1]
            step[row] = tokens
            made[row] += len(tokens)
            if made[row] < max_new_tokens and tokens[-1] != eos_token_id:
                going.append(place)
        yield step
        if not going:
            return
        if len(going) < len(alive):
            speculator.keep(going)
            alive = [alive[place] for place in going]
        # A row with r tokens to go has no use for more than r - 1 drafts and the bonus.
        drafts, accepted, bonus = speculator.round(max_new_tokens - min(made[row] for row in alive) - 1)
        stats.add(accepted, drafts.shape[1])
        news = []
        for row, drafted, kept, extra in zip(alive, drafts.tolist(), accepted, bonus.tolist(), strict=True):
            news.append([*drafted[:kept], extra])
            if on_round is not None:
                on_round(Round(row, drafted, kept, extra))
