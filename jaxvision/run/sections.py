"""The sections of a config: which function each one is passed to.

The keyword arguments of a section's functions are its keys. Their defaults, annotations and docstrings give the keys
their defaults, types and help.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from jaxvision.augment import on_device
from jaxvision.checkpoint import Checkpoints
from jaxvision.create import create_model
from jaxvision.data import source
from jaxvision.errors import UserError
from jaxvision.eval import metrics
from jaxvision.models import registry
from jaxvision.parallel.rules import make_rules
from jaxvision.train import loss, optim, partial, schedule
from jaxvision.weights import catalog


class Choice(NamedTuple):
    """A key of a section that names a function, whose own arguments become further keys of the section.

    Attributes:
      key: the key that holds the name.
      function: returns the function that a name refers to, or None for a built-in whose arguments are keys already.
      passed: arguments of the function that jaxvision passes by keyword, so that they are not keys.
      positional: number of leading arguments that jaxvision passes by position.
      optional: whether the further keys default to None, which leaves an argument out. A model's defaults depend on its
        architecture.
      exclusive: whether the function may not take keys that the section has anyway, because it would not get them.
    """

    key: str
    function: Callable[[Any], Callable[..., Any] | None]
    passed: tuple[str, ...] = ()
    positional: int = 0
    optional: bool = False
    exclusive: bool = False


class Section(NamedTuple):
    """What a section of the config is passed to.

    Attributes:
      functions: their keyword arguments are the keys. For an argument of several functions the last one counts.
      passed: arguments of the functions that jaxvision passes itself, so that they are not keys.
      choice: the key that names a function with further keys, if there is one.
    """

    functions: tuple[Callable[..., Any], ...]
    passed: tuple[str, ...] = ()
    choice: Choice | None = None


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The section ``train``: how long a run is, and what happens during it.

    Args:
      epochs: passes over the training data; may be a fraction. ``"auto"``: by the number of training images; see
        `jaxvision.run.recipe.fine_tuning_epochs`.
      steps: number of steps, instead of `epochs`.
      head_init: ``"probe"`` fits the head to the features of the training images before the first step, as
        `jaxvision probe` does (https://arxiv.org/abs/2202.10054). The run evaluates and saves this model as step 0, so
        that it is exported if training does not improve on it by the validation data. None starts with the head of the
        weights, or with a random one if they have another number of classes.
      accumulate: microbatches per step. Each step has the memory of one microbatch and the gradient of the whole batch.
      ema_decay: weight of the old value in the moving average of parameters and BatchNorm statistics, in (0, 1), such
        as 0.9998. The average is then evaluated and exported. None keeps no average.
      ema_warmup: start the average with a smaller decay, 1 - (1 + t)^(-2/3) at step t, until it reaches `ema_decay`.
        Without it, the average of a short run is nearly untrained.
      evaluate_every: epochs between evaluations. The last step is always evaluated.
      patience: stop after this many evaluations on the validation data without a better `checkpoint.best`, or without
        a better top-1 if that is None. None never stops early.
      log_every: steps between lines of ``metrics.jsonl``.
      profile: steps whose trace is written to ``profile/`` in the workdir, the first and the last, such as ``"10:19"``.
        XProf and TensorBoard show it. None writes none.
      save_every: steps between checkpoints, in addition to the one at each evaluation. None saves only those.
      remat: what each block of the model keeps for the backward pass, which recomputes the rest: ``"products"`` (of
        matrices, and convolutions) or ``"nothing"`` (only its input). None leaves it to the compiler; with `scan` or
        mesh.fsdp it means ``"products"``.
      scan: compile equal blocks as one loop, so that a deep ViT compiles in the time of a shallow one.
      batch_norm_group: number of images that BatchNorm normalizes together, such as 32. None: the whole batch, over
        all devices.
      not_finite: ``"stop"`` or ``"skip"`` a step whose loss or gradient is not finite. Such a step never changes the
        model, and its images are listed in ``not_finite.jsonl``. The tenth in a row stops the run.
    """

    epochs: float | Literal["auto"] = 10.0
    steps: int | None = None
    head_init: str | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    ema_warmup: bool = True
    evaluate_every: float = 1.0
    patience: int | None = None
    log_every: int = 10
    profile: str | None = None
    save_every: int | None = None
    remat: str | None = None
    scan: bool = False
    batch_norm_group: int | None = None
    not_finite: str = "stop"


def source_keys(*, name: str, validation_fraction: float | Literal["auto"] | None = None) -> None:
    """The keys of ``source`` that every source has.

    Args:
      name: where the images come from: ``"digits"``, ``"folder"``, ``"tfds"``, ``"huggingface"``, or your own function,
        ``"package.module:function"``.
      validation_fraction: share of each class of the training data that is held out to choose the best checkpoint and
        to stop early, for a source without validation data. The choice is seeded by `split_seed` where the source has
        that key. ``"auto"``: by the number of training images, if the source has no validation data: a tenth of them,
        but a fifth up to 100 images, and at most 5,000. None: the splits are those of the source.
    """


def data_keys(
    *,
    batch_size: int = 64,
    eval_batch_size: int | None = None,
    workers: int | None = None,
    memory_limit: float = 2.0,
    max_corrupt: int = 10,
) -> None:
    """The keys of ``data``.

    Args:
      batch_size: images per step, over all devices.
      eval_batch_size: images per step of an evaluation, over all devices. None: `batch_size`.
      workers: processes that read and decode images, for each process of the run. None: one per core, at most 16, and
        0 on one or two cores. Processes on one host divide its cores, or the CPU quota of their container.
      memory_limit: size in GiB up to which a dataset of small images of one shape is decoded once and kept in memory.
      max_corrupt: number of damaged images that are reported and skipped. One more stops the run.
    """


def preprocess_keys(
    *,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    interpolation: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> None:
    """The keys of ``preprocess``, the evaluation transform.

    None: the value of the loaded weights. Without weights: ImageNet's mean and std, bicubic interpolation and
    ``crop_pct=0.875``. Small images of one shape are never cropped.

    Args:
      crop_pct: share of the resized image's side that the crop keeps, in (0, 2].
      crop_mode: ``"center"``, ``"squash"`` or ``"border"``.
      interpolation: one of Pillow's filters, such as ``"bicubic"``.
      mean: mean of each channel of the images in [0, 1]. Also used in training.
      std: standard deviation of each channel of the images in [0, 1]. Also used in training.
    """


def schedule_keys(*, warmup_epochs: float | Literal["auto"] | None = None) -> None:
    """The keys of ``schedule`` that are not arguments of `make_schedule`.

    Args:
      warmup_epochs: length of the warm-up in epochs, instead of `warmup_steps`. ``"auto"``: a tenth of the run.
    """


def model_keys(*, image_size: int | None = None) -> None:
    """The keys of ``model`` that differ from the arguments of `create_model`.

    Args:
      image_size: side of the images in pixels. Training and evaluation images are square. The position embeddings of a
        ViT are resampled as in timm. Default: the size that the weights were trained at.
    """


def lora_keys(*, rank: int = 0) -> None:
    """The keys of ``lora`` that differ from the arguments of `add_lora`.

    Args:
      rank: rank of the low-rank adapters. 0: no adapters.
    """


def teacher_keys(
    *,
    name: str | None = None,
    checkpoint_path: str | None = None,
    kind: str | None = None,
    weight: float | None = None,
    temperature: float | None = None,
    image_size: int | None = None,
    dtype: str | None = None,
    cache: bool | None = None,
) -> None:
    """The keys of ``teacher``, for distillation. Without a name or a path there is no teacher.

    Args:
      name: the teacher: the workdir of a finished run, a folder in timm's format, or a model's name, whose weights come
        from the hub unless `checkpoint_path` is given. It does not train, is not saved in checkpoints, and sees the
        images of the student after augmentation.
      checkpoint_path: weights of the teacher, from this file, folder or workdir.
      kind: what the student learns: ``"soft"``, the teacher's probabilities; ``"hard"``, the class that the teacher
        predicts; or ``"features"``, its pooled features, with any classes. A student with a distillation head
        (DeiT) learns the first two with that head, and the labels with the other. Default: ``"soft"``.
      weight: share w of the distillation in the loss, from 0 to 1: (1 - w) * loss + w * distillation. With 1 the
        student learns from the teacher alone. Default: 0.5.
      temperature: of ``"soft"``: divides the logits of both, and its square multiplies the loss. Default: 4.
      image_size: side in pixels to which the device resizes the student's images for the teacher. A smaller one makes a
        convnet faster. Default: the size that the teacher was trained at.
      dtype: dtype of the teacher's computation. Default: `model.dtype`.
      cache: compute the teacher's outputs once, before the first step, for each training image without augmentation.
        A step then costs no more than without a teacher, but the teacher does not see the student's crops. Not with
        `augment.mixup` and `augment.cutmix`. Default: False.
    """


def optimizer_keys(
    *, learning_rate: float | Literal["auto"], layer_decay: float | Literal["auto"] | None = None
) -> None:
    """The keys of ``optimizer`` that differ from the arguments of `create_optimizer`.

    Args:
      learning_rate: peak of the learning rate, which the section ``schedule`` raises and lowers. Muon's updates are
        scaled to the size of AdamW's, so that AdamW's rate fits both. ``"auto"``: that of the model's class
        (`jaxvision.models.base.FineTuning`).
      layer_decay: factor on the learning rate from each layer to the one before it, such as 0.75; see
        `jaxvision.train.optim.layer_scales`. None: all layers have the same rate. ``"auto"``: that of the model's
        class.
    """


def metric_keys(*, name: str | None = None) -> None:
    """The keys of ``metric``.

    Args:
      name: your own metric, ``"package.module:function"``. It is called with every `Evaluation` and returns a number,
        which is logged under the function's name; `checkpoint.best` may name it. A higher number is better, unless the
        function's attribute ``lower_is_better`` is set. None: only the built-in metrics.
    """


def model_builder(name: str) -> Callable[..., Any]:
    """Returns the class or function that builds the model of a name.

    Raises:
      UserError: no such model, module or function.
    """
    return registry.variant(catalog.lookup(name, where="config.model.name").architecture).build


SECTIONS: dict[str, Section] = {
    "source": Section((source_keys,), choice=Choice("name", source.source_function)),
    "data": Section((data_keys,)),
    "preprocess": Section((preprocess_keys,)),
    "model": Section(
        (create_model, model_keys),
        passed=("num_classes", "in_channels", "seed", "features_only", "out_indices"),
        choice=Choice("name", model_builder, passed=("num_classes", "in_channels", "rngs"), optional=True),
    ),
    "lora": Section((partial.add_lora, lora_keys), passed=("model", "rngs")),
    "augment": Section(
        (on_device.augment_batch,),
        passed=("batch", "seed", "step", "num_classes", "image_size", "mean", "std", "label_smoothing"),
        choice=Choice("name", on_device.augmentation_function, passed=("key",), positional=1, exclusive=True),
    ),
    "loss": Section((loss.make_loss,), choice=Choice("kind", loss.loss_function)),
    "teacher": Section((teacher_keys,)),
    "metric": Section((metric_keys,), choice=Choice("name", metrics.metric_function, positional=1)),
    "optimizer": Section(
        (optim.create_optimizer, optimizer_keys),
        passed=("model",),
        choice=Choice("name", optim.optimizer_function, passed=(*optim.PASSED, "mu_dtype")),
    ),
    "schedule": Section(
        (schedule.make_schedule, schedule_keys),
        passed=("learning_rate", "steps"),
        choice=Choice("name", schedule.schedule_function, passed=("steps",), positional=1),
    ),
    "train": Section((TrainOptions,)),
    "sharding": Section((make_rules,), passed=("mesh", "tensor_rules")),
    "checkpoint": Section((Checkpoints,), passed=("workdir", "best_mode", "config", "log", "read_only")),
}

#: Keys and sections that may change between the start of a run and its resumption.
MAY_DIFFER = (
    "checkpoint",
    "source.data_dir",
    "data.workers",
    "data.max_corrupt",
    "data.eval_batch_size",
    "train.log_every",
    "train.profile",
    "train.save_every",
    "train.remat",
    "train.scan",
    "train.not_finite",
    "mesh",
    "metric",
    "sharding",
)


def without_none(section: ConfigDict) -> dict[str, Any]:
    """Returns the keys of a section that are not None, for a function whose own defaults replace None."""
    return {key: value for key, value in section.items() if value is not None}


def check_groups(options: TrainOptions, batch_size: int) -> None:
    """Raises unless the groups of BatchNorm divide a microbatch.

    Raises:
      UserError: `TrainOptions.batch_norm_group` does not divide the images of a microbatch.
    """
    images, group = batch_size // options.accumulate, options.batch_norm_group or 1
    if images % group:
        raise UserError(
            f"config.train.batch_norm_group: got {group}, which does not divide the {images} images of a (micro)batch. "
            "Choose a divisor, or set it to None."
        )
