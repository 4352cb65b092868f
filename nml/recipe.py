"""What a run trains and how: frozen, checked values, one dataclass a subject.

A recipe is independent of the machine: global batch, steps and learning rates are those of the whole
run, whatever the number of processes. Impossible combinations, and values that have no effect beside the
others, are refused here, with the reason.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nml.errors import UserError
from nml.model_arguments import check_model_arguments
from nml.objectives import all_options, check_loss, declared
from nml.recipe_checks import below_one, in_range, not_negative, policy, positive, share
from nml.recipe_effects import refuse_idle

BatchNormMode = Literal["local", "sync", "frozen"]
"""Whose statistics batch normalisation uses."""
Crop = Literal["rrc", "pad", "none"]
"""How a training image is cut."""
OptimizerName = Literal["sgd", "adamw", "lamb"]
"""Optimizers."""
ScheduleName = Literal["cosine", "constant"]
"""Courses of the learning rate."""
Dtype = Literal["fp32", "bf16", "fp16"]
"""Types that a step computes in."""
Compression = Literal["none", "fp16", "bf16"]
"""Types that gradients are exchanged in."""
CompileMode = Literal["default", "max-autotune-no-cudagraphs"]
"""Modes of torch.compile. Those with CUDA graphs overwrite what a forward pass gave at the next one."""
MAY_DIFFER = {"may_differ": True}
"""In a field's metadata: the value fits a run to a machine, decides what is kept of it, or says where it came
from, and may be another one when the run continues."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network.

    Attributes:
        name: A model of the objective's library: open_clip's for clip, timm's for the others.
        kwargs: Further arguments of ``create_model`` that shape the model, for example ``drop_path_rate``;
            :mod:`nml.model_arguments` lists them.
        batch_norm: Statistics of each process's own batch, of all processes' (``sync``), or never
            updated and used as they are (``frozen``).
    """

    name: str = "resnet50"
    kwargs: dict[str, Any] = field(default_factory=dict)
    batch_norm: BatchNormMode = "local"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images, their augmentation, and the order.

    Attributes:
        size: Side of the training images, pixels.
        test_size: Side of the validation images; what the export's preprocessing says.
        crop_pct: Share of a resized image's side that the central crop keeps when testing.
        interpolation: Of every resize.
        mean: Of each channel, of values in [0, 1].
        std: The same of the standard deviation.
        crop: ``rrc``: random resized crop; ``pad``: pad by an eighth and crop; ``none``: resize.
        scale: Range of the area of ``rrc``.
        flip: Probability of a horizontal flip.
        color_jitter: Strength, of brightness, contrast and saturation; 0 is off.
        jitter_hue: The same of hue, up to 0.5, beside ``color_jitter``.
        jitter_prob: Probability of both.
        grayscale: Probability of an image without colours.
        blur: Probability of Gaussian blur, of 23 pixels and a sigma of 0.1 to 2.
        auto_augment: timm's name of a policy, ``rand-m7-mstd0.5-inc1``; empty is off.
        erasing: Probability of random erasing.
        repeats: Augmented views of an image in a global batch (repeated augmentation).
        repeats_on: ``ranks``: each view of an image lies on another rank, as with timm; ``rank``: all on one,
            which reads and decodes the image once for them. Its batch, by which batch normalisation
            computes, then holds as many times fewer different images.
        streams: Largest number of processes the order allows for; see shards.sampler.
        workers: Loader processes of each rank; 0 loads in the training process.
        skip_budget: Share of the set's samples that may be skipped because they are damaged.
        cache: Short side of the cache beside the set that images are read from; 0 for the set's own.
    """

    size: int = 224
    test_size: int = 224
    crop_pct: float = 0.95
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop: Crop = "rrc"
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    color_jitter: float = 0.0
    jitter_hue: float = 0.0
    jitter_prob: float = 1.0
    grayscale: float = 0.0
    blur: float = 0.0
    auto_augment: str = ""
    erasing: float = 0.0
    repeats: int = 1
    repeats_on: Literal["ranks", "rank"] = "ranks"
    streams: int = 64
    workers: int = field(default=4, metadata=MAY_DIFFER)
    skip_budget: float = field(default=1e-4, metadata=MAY_DIFFER)
    cache: int = 0

    def __post_init__(self) -> None:
        in_range("recipe.data", self)
        positive("recipe.data", self, "size", "test_size", "crop_pct", "repeats", "streams")
        share("recipe.data", self, "flip", "erasing", "skip_budget", "jitter_prob", "grayscale", "blur")
        if not 0 <= self.jitter_hue <= 0.5:
            raise UserError(f"recipe.data.jitter_hue {self.jitter_hue}: no share of hue", possible="0 to 0.5")
        not_negative("recipe.data", self, "workers", "color_jitter", "cache")
        if min(self.std) <= 0:
            raise UserError(f"recipe.data.std {list(self.std)}: divides the pixels", possible="above 0")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(
                f"recipe.data.scale {list(self.scale)}: no range of areas",
                possible="two shares above 0, the smaller one first",
            )
        policy(self.auto_augment, self.crop)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss and what mixes its targets.

    Attributes:
        name: One of the objective's: ``cross-entropy`` or ``bce`` for classify, ``infonce`` or ``siglip`` for
            clip; for both ``gce`` or ``sce``, which withstand wrong labels and swapped captions: see
            :mod:`pretrain.losses`.
        smoothing: Label smoothing eps: a class that is there is 1 - eps + eps / K, another eps / K.
        mixup: Alpha of its Beta distribution; 0 is off.
        cutmix: The same of cutmix.
        switch: Probability of cutmix where both are on.
        bce_threshold: With ``bce``: mixed targets above it become 1, others 0; None keeps them soft.
        gce_q: Of ``gce``, above 0 to 1: near 0 cross-entropy, 1 the mean absolute error. 0.7 is Zhang and
            Sabuncu's (2018).
        sce_alpha: Of ``sce``: weight of cross-entropy. 0.1, like the next two, is Wang et al.'s (2019) for
            CIFAR-10; for CIFAR-100 they take 6 and a ``sce_beta`` of 0.1.
        sce_beta: Of ``sce``: weight of reverse cross-entropy.
        sce_zero: Of ``sce``: what stands for the logarithm of 0, below 0.
    """

    name: str = "cross-entropy"
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    bce_threshold: float | None = None
    gce_q: float = 0.7
    sce_alpha: float = 0.1
    sce_beta: float = 1.0
    sce_zero: float = -4.0

    def __post_init__(self) -> None:
        in_range("recipe.loss", self)
        share("recipe.loss", self, "switch", "gce_q")
        positive("recipe.loss", self, "gce_q")
        not_negative("recipe.loss", self, "mixup", "cutmix", "sce_alpha", "sce_beta")
        below_one("recipe.loss", self, "smoothing")
        if not self.sce_zero < 0:
            # Above 0 the reverse term would reward wrong answers.
            raise UserError(f"recipe.loss.sce_zero {self.sce_zero}: no logarithm of 0", possible="below 0")
        if not self.sce_alpha + self.sce_beta:
            raise UserError(
                "recipe.loss: sce_alpha 0 and sce_beta 0, nothing is learnt", possible="one of them above 0"
            )
        if self.smoothing and self.name in ("gce", "sce"):
            raise UserError(
                f"recipe.loss.smoothing {self.smoothing} with recipe.loss.name {self.name}: it is defined "
                "on labels of one class, and smoothing adds all others, which it is made to withstand",
                mend="--recipe.loss.smoothing 0",
            )
        if self.bce_threshold is not None:
            below_one("recipe.loss", self, "bce_threshold")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The update rule.

    Attributes:
        name: ``sgd`` (Nesterov momentum), ``adamw`` or ``lamb`` (timm's).
        lr: Peak learning rate, for the recipe's global batch.
        weight_decay: Not applied to biases, norms and the logit scale.
        momentum: Of sgd.
        betas: Of adamw and lamb.
        eps: Of adamw and lamb.
        clip: Largest gradient norm; 0 is off.
    """

    name: OptimizerName = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 0.0

    def __post_init__(self) -> None:
        in_range("recipe.optimizer", self)
        positive("recipe.optimizer", self, "lr", "eps")
        not_negative("recipe.optimizer", self, "weight_decay", "clip")
        if self.lr * self.weight_decay > 1e30:
            raise UserError(
                f"recipe.optimizer.weight_decay {self.weight_decay}: too large for the lr {self.lr}"
            )
        for name, decays in (("momentum", (self.momentum,)), ("betas", self.betas)):
            if not all(0 <= decay < 1 for decay in decays):
                raise UserError(
                    f"recipe.optimizer.{name} {getattr(self, name)}: no decay of an average",
                    possible="0 and more, below 1",
                )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the steps.

    Attributes:
        name: After the warm-up, half a cosine down to ``min_lr``, or constant.
        warmup_epochs: Length of the linear warm-up.
        warmup_steps: What is added to it, in steps.
        warmup_lr: Where the warm-up starts.
        min_lr: Where the cosine ends.
    """

    name: ScheduleName = "cosine"
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        in_range("recipe.schedule", self)
        not_negative("recipe.schedule", self, "warmup_epochs", "warmup_steps", "warmup_lr", "min_lr")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Precision, memory and communication; what fits the machine rather than the science.

    Attributes:
        dtype: Autocast type; parameters and optimizer stay fp32. ``fp16`` scales the loss.
        channels_last: Memory layout; under fsdp of the images alone.
        compile: torch.compile the network.
        checkpoint_activations: Compute activations again in the backward pass instead of keeping them: the
            same steps in less memory, and about a third more time.
        micro_batch: Most samples of a rank in one forward pass; 0 is no limit.
        zero_stage: Of deepspeed, 0 to 3.
        deepspeed_config: A DeepSpeed JSON file, merged over the generated one.
        compress_gradients: What gradients travel as under ddp; rounding differs from fp32.
        compile_mode: Of torch.compile; ``max-autotune-no-cudagraphs`` looks for the fastest kernels.
        shard_group: Of fsdp: ranks that share one copy of the weights, those of a node for example; 0 is all.
        gather_dtype: Of fsdp: what weights travel as, beside the autocast of ``dtype`` bf16; batch
            normalisation and scalars travel as fp32.
    """

    dtype: Dtype = "fp32"
    channels_last: bool = False
    compile: bool = field(default=False, metadata=MAY_DIFFER)
    checkpoint_activations: bool = field(default=False, metadata=MAY_DIFFER)
    micro_batch: int = field(default=0, metadata=MAY_DIFFER)
    zero_stage: int = 1
    deepspeed_config: str | None = None
    compress_gradients: Compression = "none"
    compile_mode: CompileMode = field(default="default", metadata=MAY_DIFFER)
    shard_group: int = field(default=0, metadata=MAY_DIFFER)
    gather_dtype: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if not 0 <= self.zero_stage <= 3:
            raise UserError(
                f"recipe.engine.zero_stage {self.zero_stage}: no such stage", possible="0, 1, 2, 3"
            )
        not_negative("recipe.engine", self, "micro_batch", "shard_group")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When to save, and what to keep.

    Attributes:
        every_epochs: Save at the end of every n-th epoch.
        every_steps: Save every n steps as well; 0 is off.
        keep_last: Newest checkpoints to keep.
        keep_every: Keep also those whose step is a multiple of it; 0 is off.
    """

    every_epochs: int = 1
    every_steps: int = 0
    keep_last: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        positive("recipe.checkpoints", self, "keep_last")
        not_negative("recipe.checkpoints", self, "every_epochs", "every_steps", "keep_every")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to pre-train an encoder.

    Attributes:
        source: Where the values come from.
        expect: The accuracy to expect, in words.
        objective: What the encoder is trained to do; ``python -m pretrain.objectives list`` names them.
        options: The objective's own, by name; those that are not given have its defaults.
        epochs: Passes over the set.
        global_batch: Samples of a step over all processes; views of repeated augmentation count.
        ema: Decay of an exponential moving average of the weights, which is then what is validated
            and exported; 0 is off.
        validate_every: Epochs between validations; the last epoch is always validated.
        skip_nonfinite: Steps in a row whose loss may be infinite or NaN: they are skipped, the next
            one stops the run.
        model: The network.
        data: Images, their augmentation, and the order.
        loss: The loss and what mixes its targets.
        optimizer: The optimizer.
        schedule: The learning rate over the steps.
        engine: How the steps are carried out.
        checkpoints: What is saved, when, and for how long.
    """

    source: str = field(default="", metadata=MAY_DIFFER)
    expect: str = field(default="", metadata=MAY_DIFFER)
    objective: str = "classify"
    options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 10
    global_batch: int = 256
    ema: float = 0.0
    validate_every: int = 1
    skip_nonfinite: int = 3
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    engine: Engine = field(default_factory=Engine)
    checkpoints: Checkpoints = field(default_factory=Checkpoints, metadata=MAY_DIFFER)

    def __post_init__(self) -> None:
        positive("recipe", self, "epochs", "global_batch", "validate_every")
        in_range("recipe", self)
        below_one("recipe", self, "ema")
        not_negative("recipe", self, "skip_nonfinite")
        check_loss(self.objective, self.loss.name, Loss().name)
        # Frozen, and yet complete: a run says of every option what it was.
        object.__setattr__(self, "options", all_options(self.objective, self.options))
        if self.global_batch % self.data.repeats and self.data.repeats > self.global_batch:
            raise UserError(f"recipe.data.repeats {self.data.repeats}: more than the global batch")
        check_model_arguments(declared(self.objective).library, self.model.kwargs, "recipe.model.kwargs")
        refuse_idle(self)

    def resolved(self) -> dict[str, Any]:
        """Return every value as plain JSON types."""
        values: dict[str, Any] = plain(asdict(self))
        return values


def plain(value: Any) -> Any:
    """Return a value as JSON has it: tuples are lists, names are text."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
