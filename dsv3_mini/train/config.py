"""Settings of one training run: `TrainConfig` and the defaults of each preset.

A field that is None takes the preset's value, so that `TrainConfig(preset="nano", out=Path("runs/nano"))` is a
complete run; `resolved()` gives the config with nothing left open. What the report fixes (AdamW's betas, decay and
clipping, the shape of every schedule) is not a setting here: see `optimizer.py` and `schedule.py`.

No torch in here, so that the command line can read it without paying for that import.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_mini.checks import is_count, is_number, require
from dsv3_mini.config import ModelConfig
from dsv3_mini.errors import InputError
from dsv3_mini.train.schedule import extension_rate

# `bias_update_speed` is gamma. The report's 0.001 has some 235,000 steps to move a bias as far as it needs to go (a few
# tenths: the scores are sigmoids); a run of a thousand steps needs a larger gamma to cover that distance in time.
TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    "nano": dict(
        steps=1300, seq_len=256, batch_tokens=1024, micro_batch_tokens=1024, lr=5e-3, bias_update_speed=0.01,
        checkpoint_every=300, eval_bytes=500_000, routing_every=10,
    ),
    "mini": dict(
        steps=3000, seq_len=256, batch_tokens=2048, micro_batch_tokens=2048, lr=3e-3, bias_update_speed=0.005,
        checkpoint_every=250, eval_bytes=500_000, routing_every=25,
    ),
    "small": dict(
        steps=20000, seq_len=1024, batch_tokens=262144, micro_batch_tokens=32768, lr=6e-4, bias_update_speed=0.001,
        checkpoint_every=1000, eval_bytes=4_000_000, routing_every=100,
    ),
}  # fmt: skip

# With `init_from`, the default of `steps` is so many times less. The report's phases are shorter still: 1000 steps each
# after some 243,000.
PHASES_PER_TRAINING = 10

# What may differ between a run and its continuation, because it changes neither the data nor the mathematics.
FREE_ON_RESUME = frozenset(
    "out text dataset resume device expert_parallel recompute micro_batch_tokens checkpoint_every keep_checkpoints "
    "eval_every eval_bytes routing_every baselines".split()
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. None stands for the preset's default. Raises `InputError` that names the field."""

    preset: str = "nano"
    out: Path  # the run folder
    steps: int | None = None  # optimizer steps; the whole schedule scales with this one number
    text: Path | None = None  # a UTF-8 file or folder to train on instead of the embedded corpus
    dataset: str | None = None  # or the name of a public dataset
    init_from: Path | None = None  # a run or checkpoint folder: its weights and tokenizer to begin with (`extend`)
    seed: int = 0  # of the initial weights and of the order of the data
    resume: bool = False  # continue the run that `out` holds
    device: str = "auto"  # "auto", "cpu", "cuda" or "cuda:N"
    expert_parallel: int = 1  # under torchrun: so many processes share the experts (`parallel.mesh`)

    recompute: bool = False  # norms and MLA up-projections: compute them twice instead of keeping them (§3.2.3)
    precision: str = "auto"  # of matrix products: "fp32", "bf16" (weights stay fp32), or bf16 where that is fast

    seq_len: int | None = None  # tokens in a sequence
    batch_tokens: int | None = None  # tokens in an optimizer step, after the batch ramp
    micro_batch_tokens: int | None = None  # tokens that go through the model at once; gradients add up to a batch
    lr: float | None = None  # the peak
    warmup_steps: int | None = None  # None: the report's share of the steps
    bias_update_speed: float | None = None  # gamma, at its peak
    mtp_scale: float = 1.0  # times the report's lambda; 0: the MTP modules learn nothing, and teach nothing
    fim_rate: float = 0.1  # share of documents cut for fill-in-the-middle (§4.1)
    needle_share: float = 0.0  # share of windows with planted lines that are asked for at the end (`needle_windows`)

    checkpoint_every: int | None = None  # steps; the last step always leaves one
    keep_checkpoints: int = 2  # older ones are removed
    eval_every: int = 0  # steps between evaluations on held-out text; 0: only at the end
    eval_bytes: int | None = None  # at most so much held-out text is evaluated
    baselines: bool = True  # at the end, measure an n-gram model and xz on the same text
    routing_every: int | None = None  # steps between routing snapshots (`routing_log`); 0: none

    model: ModelConfig | None = None  # None: the preset of the same name

    def __post_init__(self) -> None:
        if self.preset not in TRAIN_PRESETS:
            raise InputError(f"preset = {self.preset!r} cannot be trained; there are {', '.join(TRAIN_PRESETS)}")
        for name in ("out", "text", "init_from"):
            value = getattr(self, name)
            if isinstance(value, str) and value:
                object.__setattr__(self, name, Path(value))
            elif not (isinstance(value, Path) or (name != "out" and value is None)):
                raise InputError(f"{name} = {value!r} cannot be: it must be a path")
        if self.text is not None and self.dataset is not None:
            raise InputError("text and dataset are both given; a run has one corpus, so give one of the two")
        counts = "steps seq_len batch_tokens micro_batch_tokens warmup_steps checkpoint_every eval_bytes".split()
        for name in counts:
            value = getattr(self, name)
            require(value is None or is_count(value, 1), name, value, "a whole number of at least 1")
        require(self.seq_len is None or self.seq_len >= 2, "seq_len", self.seq_len, "at least 2")
        require(is_count(self.expert_parallel, 1), "expert_parallel", self.expert_parallel, "at least 1")
        require(is_count(self.seed, 0) and self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2^63 - 1")
        require(is_count(self.keep_checkpoints, 1), "keep_checkpoints", self.keep_checkpoints, "at least 1")
        every = self.routing_every
        require(every is None or is_count(every, 0), "routing_every", every, "a whole number, 0 for no snapshots")
        require(is_count(self.eval_every, 0), "eval_every", self.eval_every, "a whole number, 0 for only at the end")
        require(self.lr is None or (is_number(self.lr) and self.lr > 0), "lr", self.lr, "a number above 0")
        speed = self.bias_update_speed
        require(speed is None or (is_number(speed) and speed >= 0), "bias_update_speed", speed, "at least 0")
        scale = self.mtp_scale
        require(is_number(scale) and scale >= 0, "mtp_scale", scale, "at least 0")
        require(isinstance(self.baselines, bool), "baselines", self.baselines, "True or False")
        require(isinstance(self.recompute, bool), "recompute", self.recompute, "True or False")
        require(is_number(self.fim_rate) and 0 <= self.fim_rate <= 1, "fim_rate", self.fim_rate, "from 0 to 1")
        share = self.needle_share
        require(is_number(share) and 0 <= share <= 1, "needle_share", share, "from 0 to 1")
        device_ok = isinstance(self.device, str) and (
            self.device in ("auto", "cpu", "cuda") or self.device.removeprefix("cuda:").isdigit()
        )
        require(device_ok, "device", self.device, '"auto", "cpu", "cuda" or "cuda:N"')
        require(self.precision in ("auto", "fp32", "bf16"), "precision", self.precision, '"auto", "fp32" or "bf16"')
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Sizes that must fit each other, once the preset's values are filled in."""
        default = self._defaults()
        seq_len = self.seq_len or default["seq_len"]
        batch = self.batch_tokens or default["batch_tokens"]
        micro = self.micro_batch_tokens or default["micro_batch_tokens"]
        require(batch % seq_len == 0, "batch_tokens", batch, f"a multiple of seq_len = {seq_len}")
        require(micro >= seq_len, "micro_batch_tokens", micro, f"at least one sequence, seq_len = {seq_len}")
        model = self.model_config
        require(
            model.batch_balance_loss_alpha == 0 or micro >= batch,
            "micro_batch_tokens",
            micro,
            f"at least batch_tokens = {batch}: a batch-wise balance loss needs the whole batch at once",
        )
        require(
            seq_len <= model.max_position_embeddings,
            "seq_len",
            seq_len,
            f"at most the model's context, max_position_embeddings = {model.max_position_embeddings}",
        )
        require(
            seq_len > model.num_nextn_predict_layers,
            "seq_len",
            seq_len,
            f"above num_nextn_predict_layers = {model.num_nextn_predict_layers}, so that MTP has a target",
        )

    def _defaults(self) -> dict[str, Any]:
        """What the preset says for a run like this: windows as long as asked, a short phase after other training."""
        default = dict(TRAIN_PRESETS[self.preset])
        seq_len = self.seq_len or default["seq_len"]
        default["micro_batch_tokens"] = max(default["micro_batch_tokens"], seq_len)
        if self.init_from is not None:
            default["steps"] = max(1, default["steps"] // PHASES_PER_TRAINING)
            default["batch_tokens"] = -(-default["batch_tokens"] // seq_len) * seq_len
            default["lr"] = extension_rate(default["lr"])
        return default

    @property
    def model_config(self) -> ModelConfig:
        """The model to train."""
        return self.model or ModelConfig.preset(self.preset)

    def resolved(self) -> ResolvedConfig:
        """The same run with the preset's values filled in."""
        default = self._defaults()
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)}
        filled = {name: value for name, value in default.items() if values[name] is None}
        return ResolvedConfig(**{**values, **filled, "model": self.model_config})

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, for `run.json`."""
        plain = dataclasses.asdict(self)
        plain["out"] = str(self.out)
        # Absolute: the run may be continued, or evaluated, from another folder.
        for name in ("text", "init_from"):
            path = getattr(self, name)
            plain[name] = None if path is None else str(path.absolute())
        return plain


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """A `TrainConfig` without anything left open: None stands only where it means something."""

    steps: int
    seq_len: int
    batch_tokens: int
    micro_batch_tokens: int
    lr: float
    bias_update_speed: float
    checkpoint_every: int
    eval_bytes: int
    routing_every: int
    model: ModelConfig
