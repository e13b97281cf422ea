"""Every option of the scripts that learn masks; ``src/config.py`` has what they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from src.config import (
    MAX_EPOCHS,
    MAX_SEED,
    SIZES,
    AugmentConfig,
    CacheConfig,
    EngineConfig,
    HardwareConfig,
    OutsideConfig,
    PlaceConfig,
    StudyConfig,
    ViewsConfig,
)
from src.option import Options, defaults, option
from src.script import UserError
from src.views import VIEWS

Arch = Literal["segformer", "deeplabv3plus", "unet", "fpn"]
OF_MASKS = (  # options of train_distill.py that photographs do not have
    *("source", "group_by_name", "resolution", "crop", "window", "scale_min", "scale_max"),
    *("prior", "renorm_images", "arch", "student_arch", "teacher_arch"),
    *("student_width", "teacher_width"),
)
WIDTH: dict[str, Any] = {"least": 8, "most": 1024, "also": 0}


@dataclass(frozen=True, kw_only=True)
class MaskDataConfig(Options, group="data and output"):
    """Which images are read, and what is kept for validation."""

    config: str = option("", "YAML with a `train:` block and `models:` rows", first=True)
    name: str = option("", "name of the run's folder; empty = data set and network")
    source: str = option("auto", "layout of the data; auto = looked up (docs/layouts.md)")
    fold: str = option(
        "0", "0 … K-1, or `full` (every labelled row, no validation)",
        form=r"[0-9]{1,6}|full", first=True,
    )  # fmt: skip
    folds: int = option(
        0, "K group-aware folds; 0 = the data's own valid split, 5 if it has none",
        least=2, most=1000, also=0,
    )  # fmt: skip
    fold_seed: int = option(
        0, "seed of folds and of generated scenes, the same for every --seed",
        least=0, most=MAX_SEED,
    )  # fmt: skip
    group_by_name: bool = option(
        True, "names that differ in the last number alone (slices, tiles) share a fold, if many do"
    )
    resolution: str = option(
        "native",
        "HxW of 16 or more that images are resized to, or `native`",
        form=SIZES,
        first=True,
    )
    crop: str = option(
        "",
        "HxW of the training crops, 16 or more; empty = the resolution, or largest image",
        form=f"|{SIZES}",
    )
    window: str = option(
        "", "HxW of 16 or more that larger images are predicted by; empty = crop, native = whole",
        form=f"|{SIZES}",
    )  # fmt: skip
    dry_run: bool = option(
        False, "show images, classes, split and sizes, and write and train nothing",
        group="run", first=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ResizeConfig(Options, group="augmentation"):
    """How images with masks are resized in training."""

    scale_min: float = option(
        0.75, "smallest factor a training image is resized by", least=0.1, most=10
    )
    scale_max: float = option(
        1.5, "largest factor a training image is resized by", least=0.1, most=10
    )

    def __post_init__(self) -> None:
        """Check that the two factors are in order, besides each option's own bounds."""
        super().__post_init__()
        if self.scale_min > self.scale_max:
            raise UserError(f"--scale_min {self.scale_min}: above --scale_max {self.scale_max}")


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(
    EngineConfig, MaskDataConfig, AugmentConfig, ResizeConfig, CacheConfig, ViewsConfig,
    group="model",
):  # fmt: skip
    """What every script that learns masks needs."""

    loss: str = option(
        "ce + dice", "weighted sum of terms, as in `bce + 0.5 dice + 0.5 focal(gamma=3)`",
        group="loss",
    )  # fmt: skip
    prior: bool = option(True, "start the head at the classes' share of the training pixels")
    renorm_images: int = option(
        0, "measure BatchNorm's statistics anew on so many images at the end",
        least=0, most=1_000_000, group="schedule",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SceneConfig(Options, group="data and output"):
    """Where images come from if there are none."""

    data_dir: str = option(
        "", "folder of the data set; empty = road scenes are generated", first=True
    )


@dataclass(frozen=True, kw_only=True)
@defaults(
    config="configs/lane.yaml",
    resolution="384x384",
    loss="bce + dice",
    epochs=100,
    batch_size=12,
    micro_batch_size=4,  # × 3 accumulated steps = 12
    lr=1e-5,
    head_lr_mult=10.0,
    weight_decay=0.01,
)
class LaneConfig(SceneConfig, SegmentationConfig, group="model"):
    """``train_lane.py``: a thin foreground class, DeepLabV3+ by default."""

    model: str = option("", "a preset of configs/lane.yaml", first=True)
    arch: Literal[Arch] = option("deeplabv3plus", "decoder; DeepLabV3+ keeps its skip at stride 4")
    encoder: str = option("resnet101", "any smp encoder, or tu-NAME for any timm backbone")
    decoder_width: int = option(0, "channels of the decoder; 0 = as published", **WIDTH)
    pretrained: str = option("auto", "`auto`, `none`, or the encoder's weights file", first=True)
    postprocess: bool = option(
        False, "try morphology and components; kept if it helps on valid",
        group="validation and inference",
    )  # fmt: skip
    num_scenes: int = option(
        30, "road scenes to generate where no data are given",
        least=5, most=10_000, group="data and output",
    )  # fmt: skip
    num_frames: int = option(
        8, "frames of each generated scene", least=1, most=1000, group="data and output"
    )


@dataclass(frozen=True, kw_only=True)
class RepeatConfig(Options, group="comparison"):
    """Runs beside the one that is asked for."""

    seeds: tuple[int, ...] = option(
        (), "seeds to repeat everything with; empty = --seed alone", least=0, most=MAX_SEED
    )
    ablate: bool = option(
        False, "one more run without each block of a micro net (three seeds or more), or with each "
        "term of a distillation alone (at its weight, 0.3 if it is 0)"
    )  # fmt: skip
    allow_weak_teacher: bool = option(False, "teach although the teacher does not beat the student")

    def __post_init__(self) -> None:
        """Check that no run counts twice, besides each option's own bounds."""
        super().__post_init__()
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: name each once")


@dataclass(frozen=True, kw_only=True)
@defaults(
    config="configs/micro.yaml",
    resolution="256x256",
    loss="",
    epochs=30,
    batch_size=16,
    schedule="constant",
    lr_min=1e-4,
    beta2=0.99,
    weight_decay=0.01,
    warmup_epochs=0.0,
    clip_grad=0.0,
    ema_share=0.3,
    renorm_images=512,
    valid_every=1000,
    valid_ema_only=True,
    precision="fp32",
    channels_last="on",
    scale_min=1.0,
    scale_max=1.0,
    hflip=0.0,
    color=0.0,
    tta_steps=1,
)
class MicroConfig(SceneConfig, SegmentationConfig, RepeatConfig, group="model"):
    """``train_micro.py``: a net under a parameter budget; the defaults are the strict protocol.

    An empty ``--loss`` is ``ce / (K - 1) + protocol``; ``--data_dir`` holds the five sets, or one
    of your own.
    """

    model: str = option(
        "by_set",
        "a micro net, a preset of configs/micro.yaml, or by_set = the net that scored highest on "
        "a set, of sets of one's own twohead_10k",
        first=True,
    )
    net: str = option("", "the micro net of a preset; empty = --model")
    lr: float = option(
        0.0, "peak learning rate; 0 = 1e-2, on CFD 2e-2", least=0, most=10, first=True,
        group="optimizer",
    )  # fmt: skip
    dataset: str = option(
        "", "VOC, ETIS, CVPPP, CFD, CarDD or all; empty = all that are there",
        group="data and output", first=True,
    )  # fmt: skip
    protocol: Literal["strict", "free"] = option(
        "strict", "strict = the public anchors' conditions"
    )
    max_params: int = option(
        10_000, "trainable parameters allowed, with a 21-class head", least=1, most=1_000_000_000
    )
    allow_over_budget: bool = option(False, "train a net above --max_params all the same")
    drop: tuple[str, ...] = option((), "blocks of the net to leave out")
    teacher: str = option(
        "", "finished runs on the same sets and seeds that teach (--chain also gates)",
        group="comparison",
    )  # fmt: skip
    chain: tuple[str, ...] = option(
        (), "nets from first teacher to last student, each gated", group="comparison"
    )
    report: bool = option(
        False, "write costs, latency, scores, checklist and the decision", group="comparison"
    )
    set_losses: bool = option(
        False, "add each set's own term: edges, outline, shape, label noise", group="loss"
    )


@dataclass(frozen=True, kw_only=True)
class TeachingConfig(Options, group="distillation"):
    """What a student is taught by, beside the targets."""

    weight_kl: float = option(
        0.3, "share of the KL between soft labels; 0 = without the term", least=0, most=100
    )
    weight_attention: float = option(0.0, "share of attention transfer", least=0, most=100)
    weight_similarity: float = option(0.0, "share of similarity preservation", least=0, most=100)
    weight_channel: float = option(
        0.3, "share of the channel-wise KL over places (masks only)", least=0, most=100
    )
    weight_feature: float = option(
        0.0, "share of feature mimicking through a projector", least=0, most=100
    )
    temperature: float = option(4.0, "T of the softened distributions", above=0, most=1000)
    share_every: int = option(
        50, "steps from one measurement of the gradient shares to the next", least=1, most=1_000_000
    )
    tune: int = option(
        0, "trials of a search for weights and temperature on valid; 0 = none", least=0, most=10_000
    )
    tune_epochs: int = option(
        0, "epochs of a trial; 0 = a quarter of --epochs", least=0, most=MAX_EPOCHS
    )
    teacher_epochs: int = option(
        0, "the teacher's own number of epochs; 0 = --epochs", least=0, most=MAX_EPOCHS
    )


@dataclass(frozen=True, kw_only=True)
@defaults(config="configs/distill.yaml", head_lr_mult=10.0, tta_steps=1, loss="")
class DistillConfig(
    SceneConfig, SegmentationConfig, TeachingConfig, RepeatConfig, StudyConfig, OutsideConfig,
    group="model",
):  # fmt: skip
    """``train_distill.py``: a student alone, a teacher, and the student taught by it.

    An empty ``--loss`` is ``ce + dice`` for masks and ``cross_entropy`` for photographs, whose
    losses ``train_fold.py`` lists.
    """

    model: str = option("", "a preset of configs/distill.yaml", first=True)
    kind: Literal["segmentation", "classification"] = option("segmentation", "what is learned")
    arch: Literal[Arch] = option("segformer", "both decoders")
    student: str = option("mit_b0", "student's encoder (timm id for classification)", first=True)
    teacher: str = option("mit_b2", "teacher's encoder (timm id for classification)", first=True)
    student_arch: Literal["", Arch] = option("", "decoder of the student; empty = --arch")
    teacher_arch: Literal["", Arch] = option("", "decoder of the teacher; empty = --arch")
    student_pretrained: str = option("auto", "`auto`, `none`, or the student encoder's weights")
    teacher_pretrained: str = option("auto", "`auto`, `none`, or the teacher encoder's weights")
    student_width: int = option(0, "channels of the student's decoder; 0 = as published", **WIDTH)
    teacher_width: int = option(0, "channels of the teacher's decoder; 0 = as published", **WIDTH)
    image_size: int = option(
        0, "side for classification, px; 0 = the student's native size",
        least=16, most=4096, also=0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check that every option is one of the kind, besides each option's own bounds."""
        super().__post_init__()
        if self.image_size and self.kind == "segmentation":
            raise UserError(
                f"--image_size {self.image_size}: is for --kind classification; masks have "
                "--resolution"
            )
        for name in OF_MASKS if self.kind == "classification" else ():
            if getattr(self, name) != getattr(type(self), name):
                of_size = name in ("resolution", "crop")
                size = "; photographs have --image_size" if of_size else ""
                raise UserError(f"--{name} {getattr(self, name)}: is for --kind segmentation{size}")


@dataclass(frozen=True, kw_only=True)
class InferSegmentationConfig(PlaceConfig, HardwareConfig, group="data and output"):
    """``infer_segmentation.py``: runs of any mask track and images → masks."""

    data_dir: str = option(
        "", "folder of the data set; empty = the one the runs were trained on", first=True
    )
    source: str = option("", "layout of the data; empty = as the runs read it")
    runs: tuple[str, ...] = option(
        (), "folders of finished runs; patterns are expanded", first=True
    )
    checkpoint: str = option("", "weights to use instead of the run's best (one run only)")
    split: Literal["test", "valid"] = option("test", "which images", first=True)
    output: str = option("", "folder for the masks; empty = <output_dir>/masks/<split>", first=True)
    overlays: bool = option(False, "write the masks drawn over the images, too", first=True)
    worst: int = option(
        12, "images in the gallery of the worst (where masks exist)", least=0, most=10_000
    )
    tta_steps: int = option(
        0, "views; 0 = as many as did best on valid",
        least=0, most=len(VIEWS), group="validation and inference", first=True,
    )  # fmt: skip
    threshold: float = option(
        -1.0, "probability of the foreground; -1 = the runs' own, from valid",
        least=0, most=1, also=-1, group="validation and inference", first=True,
    )  # fmt: skip
    resolution: str = option(
        "", "HxW of 16 or more, or `native`; empty = as the runs were trained",
        form=f"|{SIZES}", group="validation and inference",
    )  # fmt: skip
    blend: Literal["oof", "uniform"] = option(
        "oof", "weights of the runs, from held-out pixels", group="validation and inference"
    )
    postprocess: bool = option(
        True, "apply the post-processing that a run found to help", group="validation and inference"
    )
    compare: tuple[str, ...] = option(
        (), "two runs, or two folders of masks, to set side by side", first=True
    )
