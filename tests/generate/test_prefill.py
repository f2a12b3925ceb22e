"""Prefill: in chunks, ragged, and with prefixes that are computed once, it leaves what one pass over a row leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.generate.cache import LatentCache
from dsv3_mini.generate.decode import generate
from dsv3_mini.generate.prefill import Prefilled, Prefix, prefill
from dsv3_mini.model.transformer import DeepSeekV3
from tests.generate.test_fast import NANO, model_of


@pytest.fixture(scope="module")
def model() -> DeepSeekV3:
    return model_of(NANO)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(97, (length,), generator=generator).tolist() for length in lengths]


def assert_same(read: Prefilled, model: DeepSeekV3, prompts: list[list[int]]) -> None:
    """Against whole passes, row by row: states, latents, and the slots of the MTP module."""
    for row, prompt in enumerate(prompts):
        cache = LatentCache(model.cfg, 1, len(prompt), torch.float64)
        hidden = model.hidden_states(torch.tensor([prompt]), cache)
        torch.testing.assert_close(read.hidden[row], hidden[0, -1], atol=5e-6, rtol=1e-5)
        assert read.cache.lengths[row] == len(prompt)
        torch.testing.assert_close(read.cache.store[:, row, : len(prompt)], cache.store[:, 0], atol=5e-6, rtol=1e-5)
        if read.drafts is None or len(prompt) == 1:
            continue
        assert read.drafts.lengths[row] == len(prompt) - 1
        module, embedded = model.mtp_modules[0], model.model.embed_tokens(torch.tensor([prompt[1:]]))
        cos, sin = model.model.rotary(torch.arange(len(prompt) - 1))
        normed = module.input_layernorm(module.join(embedded, hidden[:, :-1]))
        slots = torch.cat(module.self_attn.compress(normed, cos, sin), dim=-1)
        torch.testing.assert_close(read.drafts.store[0, row, : len(prompt) - 1], slots[0], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 7, 8, 64, 512])
def test_chunks_and_ragged_rows_leave_what_whole_passes_leave(model: DeepSeekV3, chunk: int, drafts: bool) -> None:
    prompts = texts(23, 8, 1, 7, 40)
    assert_same(prefill(model, prompts, room=3, drafts=drafts, chunk=chunk), model, prompts)


def tokens_through(model: DeepSeekV3, run) -> int:
    """Positions that the first layer computes while `run()` runs."""
    seen = []
    handle = model.model.layers[0].register_forward_hook(
        lambda module, args, out: seen.append(args[0].shape[:2].numel())
    )
    try:
        run()
    finally:
        handle.remove()
    return sum(seen)


@pytest.mark.parametrize("drafts", [False, True])
def test_what_a_batch_shares_is_computed_once(model: DeepSeekV3, drafts: bool) -> None:
    (preamble,) = texts(60)
    prompts = [preamble + ending for ending in texts(5, 1, 9, 3, seed=1)]
    assert len({prompt[60] for prompt in prompts}) > 1
    read: list[Prefilled] = []
    count = tokens_through(model, lambda: read.append(prefill(model, prompts, room=2, drafts=drafts)))
    assert_same(read[0], model, prompts)
    assert count <= 61 + 4 * 10, "the preamble once, the endings for each row"


@pytest.mark.parametrize("speculative", [0, 2])
def test_a_prefix_is_carried_from_call_to_call(model: DeepSeekV3, speculative: int) -> None:
    (first,) = texts(30)
    prefix = Prefix()
    (made,) = generate(model, [first], 12, speculative=speculative, prefix=prefix)
    assert prefix.reused == 0
    longer = [*first, *made, *texts(4, seed=2)[0]]
    expected = generate(model, [longer], 9, speculative=speculative)
    fewer = tokens_through(model, lambda: generate(model, [longer], 1, speculative=speculative))
    count = []
    result = []
    count.append(
        tokens_through(
            model, lambda: result.append(generate(model, [longer], 9, speculative=speculative, prefix=prefix))
        )
    )
    assert result == [expected]
    assert 38 <= prefix.reused < len(longer) and count[0] <= fewer - 38
    # Another beginning: what differs is not used.
    other = [*first[:10], (first[10] + 1) % 97, *first[11:]]
    assert generate(model, [other], 9, speculative=speculative, prefix=prefix) == generate(
        model, [other], 9, speculative=speculative
    )
    assert 9 <= prefix.reused <= 10
    # And the very same prompt again: its last token still has to be computed.
    assert generate(model, [other], 9, speculative=speculative, prefix=prefix) == generate(
        model, [other], 9, speculative=speculative
    )
    assert prefix.reused < len(other)


def test_the_path_through_attention_is_the_cheaper_one() -> None:
    from dsv3_mini.model.decode_cost import decode_cost
    from dsv3_mini.model.mla import MLA

    with torch.device("meta"):
        for cfg in (ModelConfig.preset("nano"), ModelConfig.preset("mini"), ModelConfig.preset("v3-671b")):
            mla = MLA(cfg)
            for new in (1, 2, 16, 64, 100, 512):
                for context in (512, 700, 4096):
                    absorbed, expanded = (decode_cost(cfg, way, context, new=new) for way in ("absorbed", "expanded"))
                    cheaper = (
                        expanded.weight_flops + expanded.memory_flops < absorbed.weight_flops + absorbed.memory_flops
                    )
                    assert mla.expanding_pays(new, context) == cheaper, (cfg.hidden_size, new, context)


def test_a_prefix_that_does_not_fit_is_refused() -> None:
    one, two = (LatentCache(NANO, batch, 8) for batch in (1, 2))
    with pytest.raises(InputError, match="must be one row"):
        one.take_from(two, 1)
    with pytest.raises(InputError, match="must be one row that holds them"):
        two.take_from(one, 3)
