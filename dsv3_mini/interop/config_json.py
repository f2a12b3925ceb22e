"""`config.json` of the Hugging Face layout, to and from `ModelConfig`.

Field names are the same on both sides; the position settings, which are spelled in two ways, have a module of their own
(`positions`). The rest of the work is refusing: a foreign file may say things that our model cannot be, and to ignore
them would give wrong logits without a sign of it.

Settings that only a training run would use (`attention_dropout`, `aux_loss_alpha`, `seq_aux`) are ignored: they do not
change what the weights compute, and the recipe of our training is our own. `aux_loss_alpha` in particular is known to
be wrong in copies of the released file (D6).

No torch in here, so that commands which only look at a config start at once.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.interop.positions import positions_from_hf, positions_to_hf, refuse

HF_INITIALIZER_RANGE = 0.02  # what transformers assumes; written when our config says "by fan-in", which it cannot say
OWN_KEY = "dsv3_mini"  # fields of ours that the layout has no place for; other readers carry it along and ignore it

# Fields of ModelConfig that a config.json spells the same. Everything about size must be there: a default of 7168 for
# a forgotten hidden_size helps nobody.
_REQUIRED = (
    "vocab_size hidden_size num_hidden_layers first_k_dense_replace intermediate_size num_attention_heads q_lora_rank "
    "kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim n_routed_experts n_shared_experts num_experts_per_tok "
    "moe_intermediate_size n_group topk_group routed_scaling_factor max_position_embeddings"
).split()
# May be left out; then transformers' value counts (special tokens aside: an unknown token is no token).
_OPTIONAL = {
    "num_nextn_predict_layers": 1,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "initializer_range": HF_INITIALIZER_RANGE,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Fields of ours alone.
_OWN = ("balance_loss_alpha", "batch_balance_loss_alpha", "initializer_range", "plain_kv_heads")
# Of a model with plain attention instead of MLA: none of the layout's architectures, so no other reader may take it for
# one of them and fill in what it misses.
PLAIN_MODEL_TYPE = "dsv3_mini_plain_attention"
# transformers knows two fields by a second name.
_ALIASES = {"num_mtp_layers": "num_nextn_predict_layers", "num_local_experts": "n_routed_experts"}
# Settings with one value that this model can be. Absent means this value, in transformers and in the released code.
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu",), '"silu", the activation of every FFN here'),
    "attention_bias": ((False, None), "false: no projection here has a bias"),
    "tie_word_embeddings": ((False, None), "false: embedding and output head are two matrices"),
    "scoring_func": (("sigmoid",), '"sigmoid", the affinity of Eq. 15'),
    "topk_method": (("noaux_tc",), '"noaux_tc", selection by biased scores within the best groups'),
    "rope_interleave": ((True,), "true: RoPE turns pairs of neighbours here, and weights fit one layout only"),
    "partial_rotary_factor": ((1, None), "1: all of qk_rope_head_dim is rotated"),
    "moe_layer_freq": ((1,), "1: every layer above first_k_dense_replace is a mixture of experts"),
    "mtp_hidden_states_first": ((False, None), "false: eh_proj takes [embedding; hidden state]"),
    "per_layer_config": ((None, {}), "absent: all layers are built alike"),
}


def config_to_hf(cfg: ModelConfig, dtype: str | None = None) -> dict[str, Any]:
    """The content of `config.json` for a model of this config; `dtype` is the type of its weights ("bfloat16").

    Stock transformers reads it to an equal model, and `config_from_hf` to an equal `ModelConfig`. A model with plain
    attention is none that transformers has: it refuses the `model_type`, and only `config_from_hf` reads it.
    """
    plain = cfg.plain_kv_heads is not None
    fields = {name: getattr(cfg, name) for name in (*_REQUIRED, *_OPTIONAL)}
    if cfg.initializer_range is None:
        fields["initializer_range"] = HF_INITIALIZER_RANGE
    return {
        "architectures": [] if plain else ["DeepseekV3ForCausalLM"],
        "model_type": PLAIN_MODEL_TYPE if plain else "deepseek_v3",
        **({"torch_dtype": dtype} if dtype is not None else {}),
        **fields,
        "num_key_value_heads": cfg.num_attention_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "rope_interleave": True,
        **positions_to_hf(cfg),
        "use_cache": True,
        OWN_KEY: _own_values(cfg),
    }


def config_from_hf(values: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """The `ModelConfig` of a `config.json`, ours or foreign.

    Fields that we do not know are passed over. Raises `InputError` that names `source` and the field when one is
    missing, or has a value that this model cannot honour or be built with.
    """
    if not isinstance(values, dict):
        raise InputError(f"{source}: must hold a JSON object with the fields of a model, not a {type(values).__name__}")
    values = dict(values)
    _check_kind(values, source)
    for alias, name in _ALIASES.items():
        if alias in values:
            values.setdefault(name, values[alias])
    for name, (accepted, right) in _FIXED.items():
        if name in values and values[name] not in accepted:
            refuse(source, name, values[name], right)
    heads = values.get("num_attention_heads")
    if values.get("num_key_value_heads", heads) not in (heads, None):
        right = (
            f"num_attention_heads = {heads}, or absent: in MLA all heads share one latent, there is nothing to group"
        )
        refuse(source, "num_key_value_heads", values["num_key_value_heads"], right)
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        raise InputError(f"{source}: field {missing[0]!r} is missing; a deepseek_v3 config has it")

    fields: dict[str, Any] = {name: values.get(name, _OPTIONAL.get(name)) for name in (*_REQUIRED, *_OPTIONAL)}
    for name, value in fields.items():
        if isinstance(value, int) and abs(value) >= 2**63:  # JSON knows whole numbers of any length, torch does not
            refuse(source, name, value, "below 2^63")
    if not isinstance(fields["norm_topk_prob"], bool):
        refuse(source, "norm_topk_prob", fields["norm_topk_prob"], "true or false")
    fields["eos_token_id"] = _one_token(fields["eos_token_id"], source)
    fields |= _own_fields(values, source)
    fields["rope_theta"], fields["rope_scaling"] = positions_from_hf(values, source)
    try:
        return ModelConfig(**fields)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `InputError` that names the file when it is not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; a checkpoint folder has one") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise InputError(f"{path}: is not a JSON file ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a JSON object, not a {type(values).__name__}")
    return values


def _check_kind(values: dict[str, Any], source: str) -> None:
    """Relatives with the same tensors carry their own model_type (Kimi K2) but name this architecture."""
    own, architectures, kind = values.get(OWN_KEY), values.get("architectures"), values.get("model_type")
    if isinstance(own, dict) and own.get("plain_kv_heads") is not None:
        if kind != PLAIN_MODEL_TYPE:
            refuse(source, "model_type", kind, f'"{PLAIN_MODEL_TYPE}" where {OWN_KEY}.plain_kv_heads is given')
        return
    named = isinstance(architectures, list) and "DeepseekV3ForCausalLM" in architectures
    if kind != "deepseek_v3" and not named:
        refuse(source, "model_type", kind, '"deepseek_v3", the one architecture of this package')


def _one_token(value: Any, source: str) -> Any:
    """transformers allows several end tokens; a `ModelConfig` has one."""
    if not isinstance(value, list):
        return value
    if not value:
        return None
    if len(value) > 1:
        warnings.warn(
            f"{source}: eos_token_id lists {value}; generation stops at the first, {value[0]}, unless told otherwise",
            stacklevel=3,
        )
    return value[0]


def _own_values(cfg: ModelConfig) -> dict[str, Any]:
    """Our own fields. Younger ones are named only where they are used: versions without them refuse unknown fields."""
    own = {name: getattr(cfg, name) for name in _OWN}
    for name, unused in (("batch_balance_loss_alpha", 0), ("plain_kv_heads", None)):
        if own[name] == unused:
            del own[name]
    return own


def _own_fields(values: dict[str, Any], source: str) -> dict[str, Any]:
    """What only our own files say. A field there that we do not know comes from a later version and has a meaning."""
    own = values.get(OWN_KEY)
    if own is None:
        return {}
    if not isinstance(own, dict):
        refuse(source, OWN_KEY, own, "an object with the fields that only this package knows")
    unknown = sorted(set(own) - set(_OWN))
    if unknown:
        raise InputError(
            f"{source}: {OWN_KEY}.{unknown[0]} is unknown to this version; use the one that wrote the file"
        )
    fields = dict(own)
    # Somebody who edits initializer_range at the place that everybody knows means it.
    stood_for_fan_in = values.get("initializer_range") == HF_INITIALIZER_RANGE and own.get("initializer_range") is None
    if not stood_for_fan_in:
        fields.pop("initializer_range", None)
    return fields
