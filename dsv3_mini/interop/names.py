"""Which tensor of a checkpoint folder is which part of which parameter.

Names on disk are those of the released checkpoint. In memory two things differ:

* The routed experts of a layer are stacked, `experts.gate_up_proj` [E, 2F, D] (gate rows first) and `experts.down_proj`
  [E, D, F]; on disk every expert has its own `gate_proj`, `up_proj` [F, D] and `down_proj` [D, F].
* An MTP module (layer L + k) shares embedding and output head with the main model (§2.2); on disk it carries copies of
  both, `embed_tokens` and `shared_head.head`, so that the module can be cut out of the folder and used alone.

Shapes: E routed experts, F width of an expert, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dsv3_mini.config import ModelConfig

_GATE_UP = ".experts.gate_up_proj"
_DOWN = ".experts.down_proj"
ROUTING_BIAS = ".e_score_correction_bias"  # fp32 in every checkpoint, whatever the type of the weights


@dataclass(frozen=True)
class Slot:
    """The place of one tensor on disk: a parameter (or buffer) of the model, or a part of one."""

    key: str  # name in the model's state dict
    shape: tuple[int, ...]
    expert: int | None = None  # index into a stack of experts
    rows: slice | None = None  # rows of that expert: gate or up
    is_copy: bool = False  # an MTP module's copy of a shared matrix: written for others, not read back

    def view(self, tensor: Tensor) -> Tensor:
        """The part of the parameter `key` that this tensor holds, without a copy."""
        if self.expert is not None:
            tensor = tensor[self.expert]
        return tensor[self.rows] if self.rows is not None else tensor


def disk_layout(state: Mapping[str, Tensor], cfg: ModelConfig) -> dict[str, Slot]:
    """Every tensor of a checkpoint by its name on disk, in the order of the layers.

    `state` is the state dict of a model; its shapes are all that is looked at, so a model on the meta device will do.
    """
    layout: dict[str, Slot] = {}
    for key, tensor in state.items():
        shape = tuple(tensor.shape)
        if key.endswith(_GATE_UP):
            prefix, width = key.removesuffix("gate_up_proj"), shape[1] // 2
            for expert in range(shape[0]):
                gate, up = slice(0, width), slice(width, 2 * width)
                layout[f"{prefix}{expert}.gate_proj.weight"] = Slot(key, (width, shape[2]), expert, gate)
                layout[f"{prefix}{expert}.up_proj.weight"] = Slot(key, (width, shape[2]), expert, up)
        elif key.endswith(_DOWN):
            prefix = key.removesuffix("down_proj")
            for expert in range(shape[0]):
                layout[f"{prefix}{expert}.down_proj.weight"] = Slot(key, shape[1:], expert)
        else:
            layout[key] = Slot(key, shape)
    for layer in mtp_layers(cfg):
        for name, key in (("embed_tokens", "model.embed_tokens.weight"), ("shared_head.head", "lm_head.weight")):
            layout[f"model.layers.{layer}.{name}.weight"] = Slot(key, tuple(state[key].shape), is_copy=True)
    return layout


def mtp_layers(cfg: ModelConfig) -> range:
    """Layer numbers of the MTP modules: they follow the layers of the main model."""
    return range(cfg.num_hidden_layers, cfg.num_hidden_layers + cfg.num_nextn_predict_layers)


def layer_of(name: str) -> int | None:
    """The layer number in a tensor name, or None for what is outside the layers."""
    parts = name.split(".")
    if parts[:2] == ["model", "layers"] and len(parts) > 3 and parts[2].isdecimal():
        return int(parts[2])
    return None
