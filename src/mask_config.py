"""Every option of the scripts that learn masks; ``src/config.py`` has what they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from src.config import EngineConfig, PlaceConfig, option


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(EngineConfig):
    """What every script that learns masks needs."""

    config: str = option("", "YAML with a `train:` block and `models:` rows")
    name: str = option("", "name of the run's folder; empty = data set and network")
    source: str = option("auto", "layout of the data; auto = looked up (see src/data/sources)")
    fold: str = option("0", "0 … K-1, or `full` (every labelled row, no validation)")
    folds: int = option(
        0, "K group-aware folds; 0 = the data's own valid split, 5 if it has none", least=0
    )
    fold_seed: int = option(
        0, "seed of folds and of generated scenes, the same for every --seed", least=0
    )
    resolution: str = option("native", "HxW that images are resized to, or `native`")
    crop: str = option("", "HxW of the training crops; empty = the resolution, or largest image")
    window: str = option(
        "", "HxW that larger images are predicted by; empty = crop, native = whole"
    )
    loss: str = option("ce + dice", "weighted sum of terms, as in `bce + 0.5 dice`")
    scale_min: float = option(0.75, "smallest factor a training image is resized by")
    scale_max: float = option(1.5, "largest factor a training image is resized by")
    hflip: float = option(0.5, "probability of a left-right flip")
    vflip: float = option(0.0, "probability of an up-down flip")
    rotate: float = option(0.0, "largest rotation, degrees")
    color: float = option(0.2, "strength of brightness, contrast and saturation changes")
    cache: Literal["auto", "ram", "disk", "none"] = option("auto", "where decoded pixels are kept")
    renorm_images: int = option(
        0, "measure BatchNorm's statistics anew on so many images at the end", least=0
    )
    prior: bool = option(True, "start the head at the classes' share of the training pixels")
    tta_steps: int = option(5, "views scored on the held-out images (1 … 5)")


@dataclass(frozen=True, kw_only=True)
class LaneConfig(SegmentationConfig):
    """``train_lane.py``: a thin foreground class, DeepLabV3+ by default."""

    data_dir: str = option("", "folder of the data set; empty = road scenes are generated")
    config: str = option("configs/lane.yaml", "YAML with a `train:` block and `models:` rows")
    model: str = option("", "a preset of configs/lane.yaml")
    arch: Literal["deeplabv3plus", "unet", "fpn", "segformer"] = option(
        "deeplabv3plus", "decoder; DeepLabV3+ keeps its skip at stride 4"
    )
    encoder: str = option("resnet101", "any smp encoder, or tu-NAME for any timm backbone")
    decoder_width: int = option(0, "channels of the decoder; 0 = as published")
    pretrained: str = option("auto", "`auto`, `none`, or the encoder's weights file")
    resolution: str = option("384x384", "HxW that images are resized to, or `native`")
    loss: str = option("bce + dice", "weighted sum of terms, as in `bce + dice + 0.5 boundary`")
    epochs: int = option(100, "passes over the training rows", least=1)
    batch_size: int = option(12, "rows an optimizer step sees", least=1)
    micro_batch_size: int = option(
        4, "rows on the device at once: 4 × 3 accumulated steps = 12", least=0
    )
    lr: float = option(1e-5, "peak learning rate of the backbone", least=0)
    head_lr_mult: float = option(10.0, "the decoder learns this many times faster")
    weight_decay: float = option(0.01, "decoupled weight decay; none on norms and biases")
    postprocess: bool = option(False, "try morphology and components; kept if it helps on valid")
    num_scenes: int = option(30, "road scenes to generate where no data are given", least=5)
    num_frames: int = option(8, "frames of each generated scene", least=1)


@dataclass(frozen=True, kw_only=True)
class MicroConfig(SegmentationConfig):
    """``train_micro.py``: a net under a parameter budget; the defaults are the strict protocol."""

    data_dir: str = option(
        "", "folder of the five sets, or of one of your own; empty = road scenes"
    )
    config: str = option("configs/micro.yaml", "YAML with a `train:` block and `models:` rows")
    model: str = option("twohead_10k", "a micro net, or a preset of configs/micro.yaml")
    net: str = option("", "the micro net of a preset; empty = --model")
    dataset: str = option("", "VOC, ETIS, CVPPP, CFD, CarDD or all; empty = all that are there")
    protocol: Literal["strict", "free"] = option(
        "strict", "strict = the public anchors' conditions"
    )
    max_params: int = option(10_000, "trainable parameters allowed, with a 21-class head")
    allow_over_budget: bool = option(False, "train a net above --max_params all the same")
    drop: tuple[str, ...] = option((), "blocks of the net to leave out")
    teacher: str = option(
        "", "finished runs on the same sets and seeds that teach (--chain also gates)"
    )
    chain: tuple[str, ...] = option((), "nets from first teacher to last student, each gated")
    allow_weak_teacher: bool = option(False, "teach although the teacher does not beat the student")
    seeds: tuple[int, ...] = option((), "seeds to repeat every set with; empty = --seed alone")
    ablate: bool = option(False, "one more run for each block dropped, three seeds or more")
    report: bool = option(False, "write costs, latency, scores, checklist and the decision")
    loss: str = option("", "terms, as in `ce + protocol`; empty = ce / (K - 1) + protocol")
    set_losses: bool = option(False, "add each set's own term: edges, outline, shape, label noise")
    resolution: str = option("256x256", "HxW that images are resized to, or `native`")
    epochs: int = option(30, "passes over the training rows", least=1)
    batch_size: int = option(16, "rows an optimizer step sees", least=1)
    lr: float = option(1e-2, "peak learning rate", least=0)
    lr_min: float = option(1e-4, "learning rate of the last step")
    beta2: float = option(0.99, "AdamW's memory of squared gradients")
    weight_decay: float = option(0.01, "decoupled weight decay; none on norms and biases")
    warmup_epochs: float = option(0.0, "epochs of linear warm-up", least=0)
    clip_grad: float = option(0.0, "largest norm of the gradient; 0 = no clipping")
    ema_share: float = option(0.1, "average over this last share of the steps; 0 = by ema_decay")
    renorm_images: int = option(
        512, "images on which BatchNorm is measured anew at the end", least=0
    )
    valid_every: int = option(
        1000, "epochs from one validation to the next; the last is always one", least=1
    )
    valid_ema_only: bool = option(True, "validate the averaged weights only, not the raw ones too")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("fp32", "arithmetic of the network")
    channels_last: Literal["auto", "on", "off"] = option("on", "memory layout of the images")
    scale_min: float = option(1.0, "smallest factor a training image is resized by")
    scale_max: float = option(1.0, "largest factor a training image is resized by")
    hflip: float = option(0.0, "probability of a left-right flip")
    color: float = option(0.0, "strength of brightness, contrast and saturation changes")
    tta_steps: int = option(1, "views scored on the held-out images (1 … 5)")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(SegmentationConfig):
    """``train_distill.py``: a student alone, a teacher, and the student taught by it."""

    data_dir: str = option("", "folder of the data set; empty = road scenes are generated")
    config: str = option("configs/distill.yaml", "YAML with a `train:` block and `models:` rows")
    model: str = option("", "a preset of configs/distill.yaml")
    kind: Literal["segmentation", "classification"] = option("segmentation", "what is learned")
    arch: Literal["segformer", "deeplabv3plus", "unet", "fpn"] = option(
        "segformer", "both decoders"
    )
    student: str = option("mit_b0", "student's encoder (timm id for classification)")
    teacher: str = option("mit_b2", "teacher's encoder (timm id for classification)")
    student_arch: str = option("", "decoder of the student; empty = --arch")
    teacher_arch: str = option("", "decoder of the teacher; empty = --arch")
    student_pretrained: str = option("auto", "`auto`, `none`, or the student encoder's weights")
    teacher_pretrained: str = option("auto", "`auto`, `none`, or the teacher encoder's weights")
    student_width: int = option(0, "channels of the student's decoder; 0 = as published")
    teacher_width: int = option(0, "channels of the teacher's decoder; 0 = as published")
    teacher_epochs: int = option(0, "the teacher's own number of epochs; 0 = --epochs")
    image_size: int = option(
        0, "side for classification, px; 0 = the student's native size", least=0
    )
    head_lr_mult: float = option(10.0, "the head learns this many times faster than the encoder")
    weight_kl: float = option(0.3, "share of the KL between soft labels; 0 = without the term")
    weight_attention: float = option(0.0, "share of attention transfer")
    weight_similarity: float = option(0.0, "share of similarity preservation")
    weight_channel: float = option(0.3, "share of the channel-wise KL over places (masks only)")
    weight_feature: float = option(0.0, "share of feature mimicking through a projector")
    temperature: float = option(4.0, "T of the softened distributions")
    tta_steps: int = option(1, "views scored on the held-out images (1 … 5)")
    share_every: int = option(
        50, "steps from one measurement of the gradient shares to the next", least=1
    )
    allow_weak_teacher: bool = option(False, "teach although the teacher does not beat the student")
    ablate: bool = option(False, "one more run for each term alone, at its weight (0.3 if it is 0)")
    tune: int = option(0, "trials of a search for weights and temperature on valid; 0 = none")
    tune_epochs: int = option(0, "epochs of a trial; 0 = a quarter of --epochs")
    seeds: tuple[int, ...] = option((), "seeds to repeat everything with; empty = --seed alone")


@dataclass(frozen=True, kw_only=True)
class InferSegmentationConfig(PlaceConfig):
    """``infer_segmentation.py``: runs of any mask track and images → masks."""

    data_dir: str = option("", "folder of the data set; empty = the one the runs were trained on")
    source: str = option("", "layout of the data; empty = as the runs read it")
    runs: tuple[str, ...] = option((), "folders of finished runs; patterns are expanded")
    checkpoint: str = option("", "weights to use instead of the run's best (one run only)")
    split: Literal["test", "valid"] = option("test", "which images")
    tta_steps: int = option(0, "views (1 … 5); 0 = as many as did best on valid")
    threshold: float = option(-1.0, "probability of the foreground; -1 = the runs' own, from valid")
    resolution: str = option("", "HxW, or `native`; empty = as the runs were trained")
    blend: Literal["oof", "uniform"] = option("oof", "weights of the runs, from held-out pixels")
    postprocess: bool = option(True, "apply the post-processing that a run found to help")
    output: str = option("", "folder for the masks; empty = <output_dir>/masks/<split>")
    overlays: bool = option(False, "write the masks drawn over the images, too")
    worst: int = option(12, "images in the gallery of the worst (where masks exist)")
    compare: tuple[str, ...] = option((), "two runs, or two folders of masks, to set side by side")
    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = option("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "arithmetic of the network")
    num_workers: int = option(-1, "loader processes; -1 = chosen by device and cores", least=-1)
    infer_batch_size: int = option(0, "rows at once; 0 = by resolution", least=0)
