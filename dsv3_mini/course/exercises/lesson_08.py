"""Exercises of lesson 08, the whole model: count a layer, run a stack, count by names, split experts, compare models.

Shapes: T tokens, D model width, E experts, F width of an expert, L layers.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.interop.names import disk_layout
from dsv3_mini.model.transformer import DeepSeekV3

# -- random inputs --


def _whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _randn(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _config(generator: Generator, **changes: object) -> ModelConfig:
    """A small model with no two sizes alike."""
    sizes = dict(
        vocab_size=_whole(generator, 200, 300),
        hidden_size=16 * _whole(generator, 4, 6),  # any share of an expert is then a whole number
        num_hidden_layers=_whole(generator, 3, 5),
        first_k_dense_replace=_whole(generator, 1, 2),
        intermediate_size=_whole(generator, 130, 160),
        num_attention_heads=_whole(generator, 3, 5),
        q_lora_rank=_whole(generator, 40, 50),
        kv_lora_rank=_whole(generator, 25, 35),
        qk_nope_head_dim=_whole(generator, 17, 20),
        qk_rope_head_dim=2 * _whole(generator, 3, 5),
        v_head_dim=_whole(generator, 12, 15),
        n_routed_experts=4 * _whole(generator, 3, 4),
        num_experts_per_tok=3,
        moe_intermediate_size=_whole(generator, 8, 11),
    )
    return ModelConfig.preset("nano", **{**sizes, **changes})


# -- 8.1: parameters of one attention layer --


def attention_parameters(config):
    d, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    key = config.qk_nope_head_dim + config.qk_rope_head_dim
    if config.q_lora_rank is None:
        queries = d * heads * key
    else:
        queries = d * config.q_lora_rank + config.q_lora_rank + config.q_lora_rank * heads * key  # down, norm, up
    keys_values = d * (latent + config.qk_rope_head_dim) + latent  # down with the shared key, norm
    keys_values += latent * heads * (config.qk_nope_head_dim + config.v_head_dim)  # up
    return queries + keys_values + heads * config.v_head_dim * d  # and W^O


def _attention(q_norm=1, kv_norm=1, rope_keys="one", out="v", up="both", query="whole", rope_down=1):
    """The count above with one of its parts changed."""

    def wrong(config):
        d, heads, latent, rank = (
            config.hidden_size, config.num_attention_heads, config.kv_lora_rank, config.q_lora_rank
        )  # fmt: skip
        nope, rope, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        key = {"whole": nope + rope, "content": nope}[query]
        queries = d * heads * key if rank is None else d * rank + q_norm * rank + rank * heads * key
        down = d * (latent + rope_down * rope * (heads if rope_keys == "each" else 1)) + kv_norm * latent
        wide = {"both": nope + v, "whole keys": nope + rope + v, "keys": nope, "twice": 2 * nope}[up]
        return queries + down + latent * heads * wide + heads * d * {"v": v, "nope": nope, "key": nope + rope}[out]

    return wrong


def _plain(config):
    return 4 * config.hidden_size * config.num_attention_heads * config.qk_nope_head_dim


def _attention_configs(generator: Generator) -> list[Case]:
    return [
        Case((_config(generator),), note="compressed queries"),
        Case((_config(generator, q_lora_rank=None),), note="queries that are not compressed (q_lora_rank None)"),
        Case((ModelConfig.preset("v3-671b"),), note="the sizes of V3"),
    ]


ATTENTION_PARAMETERS = Exercise(
    id="8.1",
    idea="mla",
    title="parameters of one attention layer, for any config",
    minutes=10,
    answer="attention_parameters",
    reference=attention_parameters,
    cases=_attention_configs,
    mistakes=(
        Mistake(
            "no norms",
            _attention(q_norm=0, kv_norm=0),
            "The two norms behind the compressed latents are missing: one weight for each channel of a latent.",
        ),
        Mistake(
            "no norm of the queries",
            _attention(q_norm=0),
            "The norm behind the compressed queries is missing.",
        ),
        Mistake(
            "no norm of the latent",
            _attention(kv_norm=0),
            "The norm behind the latent of keys and values is missing.",
        ),
        Mistake(
            "a positional key for each head",
            _attention(rope_keys="each"),
            "The positional key is counted once for every head. All heads share one (lesson 04).",
        ),
        Mistake(
            "no positional key",
            _attention(rope_down=0),
            "The positional key is missing: it is made from the hidden state, beside the latent.",
        ),
        Mistake(
            "positional keys out of the latent",
            _attention(up="whole keys"),
            "The up-projection makes the content of keys, and values. The positional part does not come from there.",
        ),
        Mistake(
            "values as wide as keys",
            _attention(up="twice"),
            "Values have a width of their own, v_head_dim; you count them as wide as the content of a key.",
        ),
        Mistake(
            "no values",
            _attention(up="keys"),
            "The up-projection of the values is missing.",
        ),
        Mistake(
            "output of the width of keys",
            _attention(out="nope"),
            "W^O reads the values of all heads, so v_head_dim decides its size.",
        ),
        Mistake(
            "output of the width of whole keys",
            _attention(out="key"),
            "W^O reads values, and you gave it the width of whole keys.",
        ),
        Mistake(
            "queries without position",
            _attention(query="content"),
            "Each head has a positional query, too: a query is as wide as a whole key.",
        ),
        Mistake(
            "one positional query",
            lambda config: (
                attention_parameters(config)
                - (config.q_lora_rank or config.hidden_size)
                * config.qk_rope_head_dim
                * (config.num_attention_heads - 1)
            ),
            "The positional query is counted once. Only the key is shared: every head has a positional query.",
        ),
        Mistake(
            "no output matrix",
            lambda config: (
                attention_parameters(config) - config.num_attention_heads * config.v_head_dim * config.hidden_size
            ),
            "W^O is missing, the matrix behind the heads.",
        ),
        Mistake(
            "block norms",
            lambda config: attention_parameters(config) + 2 * config.hidden_size,
            "The two norms of the block are counted. They stand in front of the sub-layers and belong to the block.",
        ),
        Mistake(
            "all layers",
            lambda config: attention_parameters(config) * config.num_hidden_layers,
            "That is the sum over all layers; one layer is asked for.",
        ),
        Mistake("plain attention", _plain, "That is plain multi-head attention: four matrices, no compression."),
    ),
    hints=(
        "Go through the names: q_a_proj, q_a_layernorm, q_b_proj, kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, "
        "o_proj. A matrix counts rows times columns, a norm its width.",
        "kv_a_proj_with_mqa reads hidden_size and gives the latent and one positional key. kv_b_proj reads the latent "
        "and gives, for each head, the content of a key and a value.",
        "Without compression of queries (q_lora_rank is None) there is one matrix, q_proj, in place of the three.",
    ),
    after="It must be 187,107,328 for V3, and the check has asked for that as well.",
)


# -- 8.2: the residual stream --


def run_stack(x, layers):
    written = []
    for norm_1, attention, norm_2, ffn in layers:
        written.append(attention(norm_1(x)))
        x = x + written[-1]
        written.append(ffn(norm_2(x)))
        x = x + written[-1]
    return x, torch.stack(written)


def run_stack__reused_name(x, layers):
    written = []
    for norm_1, attention, norm_2, ffn in layers:
        x = norm_1(x)
        written.append(attention(x))
        x = x + written[-1]
        x = norm_2(x)
        written.append(ffn(x))
        x = x + written[-1]
    return x, torch.stack(written)


def _stack(step_1, step_2, keep=lambda x, wrote: wrote):
    """A stack from two steps: step(x, start of the block, norm, sub-layer, other norm) -> (x, what was written)."""

    def wrong(x, layers):
        written = []
        for norm_1, attention, norm_2, ffn in layers:
            start = x
            x, wrote = step_1(x, start, norm_1, attention, norm_2)
            written.append(keep(x, wrote))
            x, wrote = step_2(x, start, norm_2, ffn, norm_1)
            written.append(keep(x, wrote))
        return x, torch.stack(written)

    return wrong


def _add(x: Tensor, wrote: Tensor) -> tuple[Tensor, Tensor]:
    return x + wrote, wrote


def _right(x, start, norm, layer, other):
    return _add(x, layer(norm(x)))


def _post(x, start, norm, layer, other):
    wrote = layer(x)
    return norm(x + wrote), wrote


def _without_norm(x, start, norm, layer, other):
    return _add(x, layer(x))


def _from_start(x, start, norm, layer, other):
    return _add(x, layer(norm(start)))


def _other_norm(x, start, norm, layer, other):
    return _add(x, layer(other(x)))


def _no_residual(x, start, norm, layer, other):
    wrote = layer(norm(x))
    return wrote, wrote


def _norm_behind(x, start, norm, layer, other):
    return _add(x, norm(layer(x)))


def _residual_from_start(x, start, norm, layer, other):
    wrote = layer(norm(x))
    return start + wrote, wrote


def _network_first(x, layers):
    return run_stack(x, [(norm_2, ffn, norm_1, attention) for norm_1, attention, norm_2, ffn in layers])


def _norm(generator: Generator, width: int):
    weight = 1 + 0.3 * _randn(generator, width)
    return lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def _mixer(generator: Generator, width: int):
    """Stands for attention: every token gets the mean of those up to itself, through a matrix."""
    weight = _randn(generator, width, width) / width**0.5
    return lambda x: (x.cumsum(0) / torch.arange(1, len(x) + 1)[:, None]) @ weight


def _network(generator: Generator, width: int):
    weight = _randn(generator, width, width) / width**0.5
    return lambda x: torch.tanh(x @ weight) + 0.1 * x


def _stacks(generator: Generator) -> list[Case]:
    cases = []
    for tokens, count, note in ((_whole(generator, 5, 8), _whole(generator, 2, 4), ""), (1, 1, "one token, one layer")):
        width = _whole(generator, 9, 12)
        layers = [
            (
                _norm(generator, width), _mixer(generator, width), _norm(generator, width), _network(generator, width)
            )
            for _ in range(count)
        ]  # fmt: skip
        cases.append(Case((2 * _randn(generator, tokens, width), layers), note=note))
    return cases


RUN_STACK = Exercise(
    id="8.2",
    idea="transformer_block",
    title="the residual stream, and what each sub-layer writes into it",
    minutes=10,
    answer="run_stack",
    reference=run_stack,
    cases=_stacks,
    dims=("T D", "2L T D"),
    mistakes=(
        Mistake(
            "reused_name",
            run_stack__reused_name,
            "The residual comes from the normalised input: x is overwritten by its norm before the addition. The norm "
            "is for the sub-layer only; the stream itself is never normalised on the way.",
        ),
        Mistake(
            "post-norm",
            _stack(_post, _post),
            "The norm stands behind the addition (post-norm). Here it stands in front of each sub-layer, and the "
            "stream goes on without it.",
        ),
        Mistake(
            "norm behind the sub-layer",
            _stack(_norm_behind, _norm_behind),
            "You normalise what a sub-layer says. The norm is for what it reads.",
        ),
        Mistake("no norms", _stack(_without_norm, _without_norm), "The norms are not used."),
        Mistake(
            "Eq. 12 as printed",
            _stack(_right, _without_norm),
            "The second sub-layer reads the stream without its norm: Eq. 12 as printed. Figure 2 and the released code "
            "have a norm there, too.",
        ),
        Mistake(
            "side by side",
            _stack(_right, _from_start),
            "Both sub-layers read the input of the block. The second one should read the stream after the first has "
            "written into it.",
        ),
        Mistake(
            "first norm twice",
            _stack(_right, _other_norm),
            "The first norm is used twice. Each sub-layer has its own.",
        ),
        Mistake(
            "no residual",
            _stack(_no_residual, _no_residual),
            "A sub-layer replaces the stream. It should be added to it.",
        ),
        Mistake(
            "one residual",
            _stack(_no_residual, lambda x, start, *parts: _residual_from_start(x, start, *parts)),
            "There is one residual around both sub-layers together. Each has its own.",
        ),
        Mistake(
            "second residual from the start",
            _stack(_right, _residual_from_start),
            "The second residual starts from the input of the block, so that what attention wrote is lost. Add to the "
            "stream as it is.",
        ),
        Mistake(
            "network first",
            _network_first,
            "The network runs before attention. In a block attention comes first.",
        ),
        Mistake(
            "stream instead of writing",
            _stack(_right, _right, keep=lambda x, wrote: x),
            "The stream at the end is right. The second part should hold what each sub-layer adds; you kept the stream "
            "after each addition.",
        ),
    ),
    hints=(
        "Every sub-layer does the same: read the normalised stream, say something, add it to the stream.",
        "Keep two names apart: the stream, and its normalised copy that a sub-layer reads.",
        "Collect what attention and ffn return, in the order of the calls, and stack it at the end.",
    ),
    after="So the last state is x plus all that was written: (stream - x) equals written.sum(0).",
)


# -- 8.3: active parameters, by the names on disk --


def active_parameters(shapes, config):
    always, routed = 0, 0
    for name, shape in shapes.items():
        parts = name.split(".")
        is_mtp = parts[1] == "layers" and int(parts[2]) >= config.num_hidden_layers
        if is_mtp or name == "model.embed_tokens.weight":
            continue
        if ".mlp.experts." in name:
            routed += math.prod(shape)
        else:
            always += math.prod(shape)
    return always + routed * config.num_experts_per_tok // config.n_routed_experts


def active_parameters__by_word(shapes, config):
    always, routed = 0, 0
    for name, shape in shapes.items():
        parts = name.split(".")
        is_mtp = parts[1] == "layers" and int(parts[2]) >= config.num_hidden_layers
        if is_mtp or name == "model.embed_tokens.weight":
            continue
        if "experts" in name:
            routed += math.prod(shape)
        else:
            always += math.prod(shape)
    return always + routed * config.num_experts_per_tok // config.n_routed_experts


def _active(mtp=False, embedding=False, head=True, router=True, norms=True, share="chosen", copies=True):
    """The count above with one of its parts changed."""

    def wrong(shapes, config):
        always, routed = 0, 0
        for name, shape in shapes.items():
            parts = name.split(".")
            is_mtp = parts[1] == "layers" and int(parts[2]) >= config.num_hidden_layers
            is_copy = is_mtp and name.endswith(("embed_tokens.weight", "shared_head.head.weight"))
            skipped = (
                (is_mtp and not mtp)
                or (is_copy and not copies)
                or (name == "model.embed_tokens.weight" and not embedding)
                or (name.startswith("lm_head") and not head)
                or (".mlp.gate." in name and not router)
                or (name.endswith("norm.weight") and not norms)
            )
            if skipped:
                continue
            if ".mlp.experts." in name:
                routed += math.prod(shape)
            else:
                always += math.prod(shape)
        part = {"chosen": config.num_experts_per_tok / config.n_routed_experts, "all": 1, "none": 0}
        return always + round(routed * part[share])

    return wrong


def _one_expert_a_layer(shapes, config):
    first = [name for name in shapes if ".mlp.experts.0." in name]
    return sum(math.prod(shapes[name]) for name in first if int(name.split(".")[2]) < config.num_hidden_layers)


def _shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint on disk."""
    with torch.device("meta"):
        state = DeepSeekV3(config).state_dict()
    return {name: slot.shape for name, slot in disk_layout(state, config).items()}


def _checkpoints(generator: Generator) -> list[Case]:
    config = _config(generator, n_shared_experts=_whole(generator, 1, 2))
    plain = _config(generator, num_nextn_predict_layers=0)
    return [
        Case((_shapes_of(config), config), note="a checkpoint with an MTP module"),
        Case((_shapes_of(plain), plain), note="a checkpoint without MTP modules"),
    ]


ACTIVE_PARAMETERS = Exercise(
    id="8.3",
    idea="cost",
    title="active parameters of a checkpoint, by its tensor names",
    minutes=15,
    answer="active_parameters",
    reference=active_parameters,
    cases=_checkpoints,
    mistakes=(
        Mistake(
            "by_word",
            active_parameters__by_word,
            'The shared experts are counted in part only: the word "experts" is in shared_experts, too. They work for '
            "every token.",
        ),
        Mistake(
            "MTP counted",
            _active(mtp=True),
            "The MTP module is counted: layers with a number of num_hidden_layers and above belong to it, and so do "
            "the copies of embedding and head in them.",
        ),
        Mistake(
            "everything",
            lambda shapes, config: sum(math.prod(shape) for shape in shapes.values()),
            "That is the sum of all tensors in the folder.",
        ),
        Mistake(
            "no routing bias",
            lambda shapes, config: active_parameters(
                {name: shape for name, shape in shapes.items() if not name.endswith("bias")}, config
            ),
            "The routing bias is missing: one number for each routed expert, used for every token.",
        ),
        Mistake(
            "one expert too many",
            lambda shapes, config: active_parameters(shapes, config) + _one_expert_a_layer(shapes, config),
            "One routed expert too many in each layer. The shared expert has names and tensors of its own.",
        ),
        Mistake(
            "MTP without copies",
            _active(mtp=True, copies=False),
            "The MTP module is counted: layers with a number of num_hidden_layers and above belong to it.",
        ),
        Mistake(
            "embedding counted",
            _active(embedding=True),
            "The input embedding is counted. That is the other rule; here it is left out, as a look-up multiplies "
            "nothing.",
        ),
        Mistake(
            "head left out",
            _active(head=False),
            "The output head is missing. It is a matrix that every token is multiplied with.",
        ),
        Mistake(
            "no routers",
            _active(router=False),
            "The routers (mlp.gate) are missing: every token is scored against all experts.",
        ),
        Mistake("no norms", _active(norms=False), "The norms are missing. They are small, and they are parameters."),
        Mistake(
            "all experts",
            _active(share="all"),
            "All routed experts are counted. Of the routed ones a token uses num_experts_per_tok.",
        ),
        Mistake(
            "no routed experts",
            _active(share="none"),
            "The routed experts are left out altogether. Some of them work for each token.",
        ),
    ),
    hints=(
        "Sort the names into three heaps: left out, counted in part, counted whole.",
        "Left out: model.embed_tokens.weight and everything in layers from num_hidden_layers on. The number of a layer "
        'is name.split(".")[2].',
        "Counted in part: what contains .mlp.experts. with both dots. All experts are of one size, so it is "
        "num_experts_per_tok of n_routed_experts.",
    ),
    after="For the released names it gives 36,625,618,432: the 37 billion of the report.",
)


# -- 8.4: names on disk --


def split_experts(gate_up, down, layer):
    tensors, width = {}, gate_up.shape[1] // 2
    for expert in range(len(gate_up)):
        name = f"model.layers.{layer}.mlp.experts.{expert}"
        tensors[f"{name}.gate_proj.weight"] = gate_up[expert, :width]
        tensors[f"{name}.up_proj.weight"] = gate_up[expert, width:]
        tensors[f"{name}.down_proj.weight"] = down[expert]
    return tensors


def _split(gate=lambda stack, w: stack[:w], up=lambda stack, w: stack[w:], down=lambda d: d, name=lambda n: n, first=0):
    """The split above with one of its parts changed."""

    def wrong(gate_up, down_stack, layer):
        tensors, width = {}, gate_up.shape[1] // 2
        for expert in range(len(gate_up)):
            prefix = f"model.layers.{layer}.mlp.experts.{expert + first}"
            tensors[name(f"{prefix}.gate_proj.weight")] = gate(gate_up[expert], width)
            tensors[name(f"{prefix}.up_proj.weight")] = up(gate_up[expert], width)
            tensors[name(f"{prefix}.down_proj.weight")] = down(down_stack[expert])
        return tensors

    return wrong


def _stacked(generator: Generator) -> list[Case]:
    experts, width, inner = _whole(generator, 3, 5), _whole(generator, 12, 15), _whole(generator, 6, 9)
    layer = _whole(generator, 3, 60)
    return [
        Case((_randn(generator, experts, 2 * inner, width), _randn(generator, experts, width, inner), layer)),
        Case((_randn(generator, 1, 2, 5), _randn(generator, 1, 5, 1), 7), note="one expert of width 1"),
    ]


SPLIT_EXPERTS = Exercise(
    id="8.4",
    idea="deepseekmoe",
    title="from stacked experts to the names on disk",
    minutes=5,
    answer="split_experts",
    reference=split_experts,
    cases=_stacked,
    mistakes=(
        Mistake(
            "gate and up swapped",
            _split(gate=lambda s, w: s[w:], up=lambda s, w: s[:w]),
            "gate_proj and up_proj are swapped: in the stack the gate rows come first. The shapes fit either way, and "
            "the model would load without a word.",
        ),
        Mistake(
            "every other row",
            _split(gate=lambda s, w: s[::2], up=lambda s, w: s[1::2]),
            "You take the rows of gate and up in turns. They lie in two blocks, one above the other.",
        ),
        Mistake(
            "transposed",
            _split(gate=lambda s, w: s[:w].T, up=lambda s, w: s[w:].T, down=lambda d: d.T),
            "The matrices are transposed. A weight has a row for each output, in the stack and on disk.",
        ),
        Mistake(
            "down transposed",
            _split(down=lambda d: d.T),
            "down_proj is transposed. It stands in the stack as it does on disk, [D, F].",
        ),
        Mistake(
            "no .weight",
            _split(name=lambda n: n.removesuffix(".weight")),
            "The names lack their end: a tensor is called ....gate_proj.weight.",
        ),
        Mistake(
            "no model.",
            _split(name=lambda n: n.removeprefix("model.")),
            "The names lack their beginning: all but the head are under model.",
        ),
        Mistake("counted from one", _split(first=1), "Experts are counted from 0: the first one is ...experts.0...."),
        Mistake(
            "halves along the width",
            _split(gate=lambda s, w: s[:, : s.shape[1] // 2], up=lambda s, w: s[:, s.shape[1] // 2 :]),
            "You cut the stack along D. Gate and up are blocks of rows: cut along 2F.",
        ),
    ),
    hints=(
        "An expert e has three names: model.layers.{layer}.mlp.experts.{e}. with gate_proj.weight, up_proj.weight and "
        "down_proj.weight behind it.",
        "gate_up[e] has the shape [2F, D]: its first F rows are the gate.",
    ),
    after="The other way round is what the lesson did to load the folder.",
)


# -- 8.5: where two models part --


def first_difference(ours, theirs, x, tolerance):
    a = b = x
    for number, (our_layer, their_layer) in enumerate(zip(ours, theirs, strict=True)):
        a, b = our_layer(a), their_layer(b)
        if not (a - b).abs().max() <= tolerance:  # a NaN is a difference, too
            return number
    return -1


def _differences(measure=lambda a, b: (a - b).abs().max(), pick="first", nan_passes=False, shift=0):
    """The search above with one of its parts changed."""

    def wrong(ours, theirs, x, tolerance):
        a = b = x
        found = []
        for number, (our_layer, their_layer) in enumerate(zip(ours, theirs, strict=True)):
            a, b = our_layer(a), their_layer(b)
            gap = measure(a, b)
            if (gap > tolerance) if nan_passes else not (gap <= tolerance):
                found.append(number + shift)
        if pick == "end":
            found = found if found and found[-1] == len(ours) - 1 + shift else []
        return -1 if not found else found[0] if pick == "first" else found[-1]

    return wrong


def _same_input(ours, theirs, x, tolerance):
    for number, (our_layer, their_layer) in enumerate(zip(ours, theirs, strict=True)):
        if not (our_layer(x) - their_layer(x)).abs().max() <= tolerance:
            return number
    return -1


def _before(ours, theirs, x, tolerance):
    a = b = x
    for number, (our_layer, their_layer) in enumerate(zip(ours, theirs, strict=True)):
        if not (a - b).abs().max() <= tolerance:
            return number
        a, b = our_layer(a), their_layer(b)
    return -1


def _two_models(generator: Generator) -> list[Case]:
    width, tokens, count = _whole(generator, 8, 11), _whole(generator, 4, 6), _whole(generator, 5, 7)
    weights = [_randn(generator, width, width) / width**0.5 for _ in range(count)]
    x = _randn(generator, tokens, width)
    place = _whole(generator, 1, count - 3)
    even = torch.ones(tokens, width)
    even[: tokens // 2], even[tokens // 2 : tokens // 2 * 2] = 0.1, -0.1
    even[tokens // 2 * 2 :] = 0.0  # adds up to zero
    single = torch.zeros(tokens, width)
    single[-1, 0] = 0.2  # behind it nobody mixes tokens, so the others stay as they are

    def layer(weight, dtype=torch.float32, add=0.0, fades=False, later=False):
        def run(state):
            said = torch.tanh(state.to(dtype) @ weight.to(dtype)).float()
            fault = 0.0 if later and torch.equal(state, x) else add
            return torch.zeros_like(state) if fades else state + said + fault

        return run

    def case(changed, note, fades=False, later=False):
        ours = [
            layer(w, add=changed.get(i, 0.0), fades=fades and i == count - 1, later=later)
            for i, w in enumerate(weights)
        ]
        theirs = [layer(w, torch.float64, fades=fades and i == count - 1) for i, w in enumerate(weights)]
        return Case((ours, theirs, x, 1e-3), note=note)

    return [
        case({place: 0.2}, "a layer in the middle that gives too much"),
        case({place: -0.2}, "a layer in the middle that gives too little"),
        case({}, "two models that differ by rounding only"),
        case({place: single}, "one number that differs"),
        case({place: even}, "a layer in which differences up and down cancel"),
        case({place: math.nan}, "a layer that gives NaN"),
        case({place: 0.2}, "a difference that is gone at the end", fades=True),
        case({place: 0.1, count - 1: 0.3}, "two layers that differ"),
        case({place: 0.2}, "a layer that is right on x and wrong on what reaches it", later=True),
        case({count - 1: 0.2}, "a last layer that differs"),
    ]


FIRST_DIFFERENCE = Exercise(
    id="8.5",
    idea="transformer_block",
    title="the first layer in which two models part",
    minutes=10,
    answer="first_difference",
    reference=first_difference,
    cases=_two_models,
    mistakes=(
        Mistake(
            "NaN passes",
            _differences(nan_passes=True),
            "A layer that gives NaN passes: NaN > tolerance is False, as every comparison with NaN is. Ask for what "
            "must hold, and turn that round.",
        ),
        Mistake(
            "mean of differences",
            _differences(measure=lambda a, b: (a - b).mean().abs()),
            "Differences up and down cancel in the mean. Take absolute values first.",
        ),
        Mistake(
            "signed",
            _differences(measure=lambda a, b: (a - b).max()),
            "You look at differences in one direction only: a number that is too small passes. Take absolute values.",
        ),
        Mistake(
            "everywhere",
            _differences(measure=lambda a, b: (a - b).abs().min(), nan_passes=True),
            "You ask whether the states differ everywhere (all). One wrong number is enough (any, or the maximum).",
        ),
        Mistake(
            "same input for every layer",
            _same_input,
            "Every layer gets x itself. It should get what the layer before it gives: a layer may be wrong only on "
            "states that really occur.",
        ),
        Mistake(
            "compared before",
            _before,
            "You compare before each layer runs, so the blame falls on the one behind, and the last layer is never "
            "looked at.",
        ),
        Mistake(
            "last",
            _differences(pick="last"),
            "You give the last layer that differs. Behind the first one everything is off; that one is to blame.",
        ),
        Mistake(
            "counted from one",
            _differences(shift=1),
            "The layers are counted from 1. In the names of a checkpoint the first is 0.",
        ),
        Mistake(
            "only the end",
            _differences(pick="end"),
            "You look at the end only: the answer is the last layer, or none. Compare after each layer.",
        ),
        Mistake(
            "exact",
            lambda ours, theirs, x, tolerance: first_difference(ours, theirs, x, 0.0),
            "Two correct models differ by rounding. A difference counts from `tolerance` on.",
        ),
    ),
    hints=(
        "Two states, both x at first. Send each through its own model, one layer at a time, and compare after each.",
        "The largest absolute difference is a good measure. What does max() give when a NaN is among the numbers, and "
        "what is NaN > 0.001?",
        "`not (gap <= tolerance)` is True for a gap that is too large and for NaN.",
    ),
    after="When logits disagree, this says where to look first.",
)

EXERCISES = (ATTENTION_PARAMETERS, RUN_STACK, ACTIVE_PARAMETERS, SPLIT_EXPERTS, FIRST_DIFFERENCE)
