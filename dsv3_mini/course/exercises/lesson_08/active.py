"""Exercise 8.3: active parameters of a checkpoint, by the names on disk."""

from __future__ import annotations

import math

import torch
from torch import Generator

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_08.inputs import _config, _whole
from dsv3_mini.interop.names import disk_layout
from dsv3_mini.model.transformer import DeepSeekV3


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
