"""YaRN for a model that is already there (§4.3): the weights stay, what turns the positions changes.

YaRN is not part of the weights. Two things depend on it, and a model computes both when it is built: the frequencies
of the rotary positions (`rope.rope_frequencies`) and the scale of the softmax (`rope.softmax_scale`). So an extended
model is built anew around the very same tensors. It is an explicit choice: the released code switches YaRN on by the
length of a buffer that somebody allocates, and the same weights then answer differently (D12).
"""

from __future__ import annotations

import torch

from dsv3_mini.errors import InputError
from dsv3_mini.model.experts import Experts
from dsv3_mini.model.transformer import DeepSeekV3


def extended(model: DeepSeekV3, factor: float, original: int) -> DeepSeekV3:
    """`model` with YaRN on: it reads `factor` times the `original` tokens of its training, or more if it could before.

    Weights are shared, not copied, and `model` itself goes on as it was. Before any further training the result reads
    far better beyond `original` than plain positions do, and a little worse within. Raises `InputError` for a model
    that has YaRN already: what it was trained with is then not `original`, and it is extended by its own config.
    """
    if model.cfg.rope_scaling is not None:
        raise InputError(
            f"this model has YaRN already (factor {model.cfg.rope_scaling.factor:g} over "
            f"{model.cfg.rope_scaling.original_max_position_embeddings} tokens); it is not extended a second time"
        )
    with torch.device("meta"):  # no memory: every tensor is one of `model`
        longer = DeepSeekV3(model.cfg.with_yarn(factor, original))
    longer.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    longer.attention_path = model.attention_path
    for ours, theirs in zip(longer.modules(), model.modules(), strict=True):
        ours.training = theirs.training
        if isinstance(ours, Experts) and isinstance(theirs, Experts):
            ours.force_path(theirs.path)
    return longer
