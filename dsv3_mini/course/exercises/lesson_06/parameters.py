"""Exercise 6.1: parameters that exist in one MoE layer, and those that work for a token."""

from __future__ import annotations

from torch import Generator

from dsv3_mini.config import ModelConfig
from dsv3_mini.course.checking import Case, Exercise, Mistake
from dsv3_mini.course.exercises.lesson_06.inputs import _whole


def moe_parameters(config):
    expert = 3 * config.hidden_size * config.moe_intermediate_size  # gate, up, down
    router = config.n_routed_experts * (config.hidden_size + 1)  # a centroid and a bias for each expert
    total = (config.n_routed_experts + config.n_shared_experts) * expert + router
    active = (config.num_experts_per_tok + config.n_shared_experts) * expert + router
    return total, active


def _counted(
    matrices=3, shared=None, active_routers=None, bias=1, width="moe_intermediate_size", per_token=None, routers=True
):
    """The count above with one of its parts changed."""

    def wrong(config):
        expert = matrices * config.hidden_size * getattr(config, width)
        number = config.n_shared_experts if shared is None else shared
        one = config.hidden_size + bias if routers else 0
        active = (config.num_experts_per_tok + number) * expert
        active += (config.n_routed_experts if active_routers is None else config.num_experts_per_tok) * one
        return (config.n_routed_experts + number) * expert + config.n_routed_experts * one, active

    return wrong


def _shared(config):
    return config.n_shared_experts * 3 * config.hidden_size * config.moe_intermediate_size


def _router(config):
    return config.n_routed_experts * (config.hidden_size + 1)


def _configs(generator: Generator) -> list[Case]:
    small = ModelConfig.preset(
        "nano",
        hidden_size=_whole(generator, 20, 90),
        moe_intermediate_size=_whole(generator, 10, 19),
        intermediate_size=_whole(generator, 200, 300),
        n_routed_experts=4 * _whole(generator, 5, 9),
        n_shared_experts=_whole(generator, 2, 3),
        num_experts_per_tok=_whole(generator, 4, 6),
    )
    return [
        Case((small,), note=f"{small.n_routed_experts} routed and {small.n_shared_experts} shared experts"),
        Case((ModelConfig.preset("v3-671b"),), note="the sizes of V3"),
    ]


MOE_PARAMETERS = Exercise(
    id="6.1",
    idea="deepseekmoe",
    title="parameters of one MoE layer, and those that work for a token",
    minutes=5,
    answer="moe_parameters",
    reference=moe_parameters,
    cases=_configs,
    mistakes=(
        Mistake(
            "no shared experts",
            _counted(shared=0),
            "The shared experts are missing. They exist, and every token passes them.",
        ),
        Mistake(
            "one shared expert",
            _counted(shared=1),
            "This counts one shared expert. V3 has one, but the config may say another number.",
        ),
        Mistake(
            "two matrices",
            _counted(matrices=2),
            "This gives an expert two matrices. A SwiGLU network has one more: the gate.",
        ),
        Mistake(
            "width of the dense layers",
            _counted(width="intermediate_size"),
            "That is the width of a dense FFN. An expert has a width of its own in the config.",
        ),
        Mistake("no router", _counted(routers=False), "The experts are right, and the router is missing."),
        Mistake(
            "no routing bias",
            _counted(bias=0),
            "The routing bias is missing: besides its centroid, each routed expert has one number for the choice.",
        ),
        Mistake(
            "only the chosen centroids",
            _counted(active_routers=0),
            "The total is right. For the active part you count the centroids of the chosen experts only. A token must "
            "be compared with all of them before one can be chosen.",
        ),
        Mistake(
            "swapped", lambda config: moe_parameters(config)[::-1], "First the total, then the active part, please."
        ),
        Mistake(
            "shared experts idle",
            lambda config: (moe_parameters(config)[0], moe_parameters(config)[1] - _shared(config)),
            "The total is right. The active part lacks the shared experts: every token passes them.",
        ),
        Mistake(
            "router idle",
            lambda config: (moe_parameters(config)[0], moe_parameters(config)[1] - _router(config)),
            "The total is right. The active part lacks the router: no token can be sent without it.",
        ),
        Mistake(
            "bias idle",
            lambda config: (moe_parameters(config)[0], moe_parameters(config)[1] - config.n_routed_experts),
            "The total is right. The active part lacks the routing bias: it is added to the scores of every token.",
        ),
        Mistake(
            "all work",
            lambda config: (moe_parameters(config)[0],) * 2,
            "Both numbers are the total. A token meets only some of the routed experts.",
        ),
        Mistake(
            "all layers",
            lambda config: tuple(
                (config.num_hidden_layers - config.first_k_dense_replace) * n for n in moe_parameters(config)
            ),
            "That is the sum over all MoE layers; one layer is asked for.",
        ),
    ),
    hints=(
        "Begin with one expert: how many matrices, of which shape? Then count experts.",
        "The router holds a vector of hidden_size numbers and one bias for every routed expert. All of it works for "
        "every token.",
        "Both numbers have the form (experts) * (size of one) + router; only the number of experts differs.",
    ),
    after="At the sizes of V3 the second number hardly depends on how many experts there are to choose from.",
)
