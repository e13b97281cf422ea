"""Members of an ensemble within a time budget: backbone, size, recipe and epochs of each.

Pure decisions on what :mod:`~src.pipelines.classification.survey` measured, and the file that keeps
them; :mod:`~src.pipelines.classification.follow` carries them out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.config import MAX_MEMBERS
from src.data.folds import Folds
from src.files import Json, write_text
from src.script import counted

MIN_EPOCHS, MAX_EPOCHS = 3, 16
EPOCH_ROWS = 1000  # images of an epoch; an epoch of more is worth as many epochs as it has of these
OPTIMISM = 1.2  # rows plan so many more epochs than fit: what is too much is trimmed
TWO_RECIPES_FROM = 8  # epochs that one recipe alone could have, from which two share the time
SLOWNESS = 1.5  # epochs after which a training is half as far from its end as a probe's loss says
SMALLNESS = 0.4  # a net trained at half the useful size ends 1.3 times above what its probe says
PROBE_SHARE, PROBES_SHARE, MAX_PROBES = 0.08, 0.2, 3  # of the time: a probe's features, all of them
SHARE_FOR_GAIN = 2.0  # a probe that takes 1 % off the others' loss may take 2 % of the time
TTA_SCALE = 1.25  # nets trained on crops see test images too small (arXiv 1906.06423)
# What differs between the recipes is how far the net moves: which is right depends on how far the
# data are from ImageNet, and the mean of both beats either (docs/experiments.md).
RECIPES: dict[str, Json] = {  # the first one is better where epochs are few
    "near": {
        "norms": "frozen",
        "head_start": "probe",
        "pool": "stages",
        "lr": 5e-4,
        "head_lr_mult": 1.0,
    },
    "moving": {"norms": "batch", "head_start": "random", "lr": 1e-3, "head_lr_mult": 5.0},
}
COMMON: Json = {
    "batch_size": 16, "scale_min": 0.7, "label_smoothing": 0.02, "ema_decay": 0.998,
    "valid_ema_only": True, "tta_steps": 2, "checkpoint_minutes": 1.0, "keep_last": False,
}  # fmt: skip


def short_name(timm_id: str) -> str:
    """Return an id without its tag and what many have in front."""
    return timm_id.partition(".")[0].removeprefix("tf_").replace("efficientnet_", "")


@dataclass(frozen=True)
class Candidate:
    """A backbone at an image size, as measured."""

    timm_id: str  # with its tag
    image_size: int  # side, px
    log_loss: float  # of the probe, leave-one-out, nats
    accuracy: float  # of the probe, leave-one-out
    train_rate: float  # training images a second
    infer_rate: float  # images a second without gradients
    fixed_size: bool = False  # whether the backbone takes no other size
    stages: bool = True  # whether its earlier maps can be pooled
    useful_size: int = 0  # px below which training is known to lose more than the probe says
    # share that its probe takes off the loss of those with more; 1 = the best one, 0 =
    # nothing
    gain: float = 0.0
    whole_id: bool = False  # whether another backbone would have the same short name

    @property
    def name(self) -> str:
        """Short name of backbone and size."""
        net = self.timm_id.replace(".", "_") if self.whole_id else short_name(self.timm_id)
        return f"{net}_{self.image_size}"

    @property
    def summary(self) -> str:
        """One line of what was measured."""
        return (
            f"{self.name}: probe {self.log_loss:.4f}, accuracy {self.accuracy:.3f}, "
            f"{self.train_rate:.0f} images/s in training, {self.infer_rate:.0f} without gradients"
        )


@dataclass(frozen=True)
class Member:
    """One row of ``plan.yaml``."""

    name: str  # of the row and of its folder
    options: Json  # the row
    epoch_s: float  # seconds an epoch of one fold takes, as far as is known
    tail_s: float  # seconds of a fold beside its epochs: probe, scores, OOF, test images, blend

    @property
    def epochs(self) -> int:
        """Planned length of its schedule."""
        return int(self.options.get("epochs", 20))


@dataclass(frozen=True)
class Work:
    """The size of the job: rows that a fold trains on, rows that it scores, test rows, folds."""

    train_rows: int
    valid_rows: int
    test_rows: int
    num_folds: int
    num_cards: int = 1  # folds that are trained at once
    pace: float = 1.0  # of the surveyed rate without gradients, what each of these has

    @property
    def epoch_worth(self) -> float:
        """Epochs of ``EPOCH_ROWS`` images that one epoch of a fold is worth, at least 1."""
        return max(1.0, self.train_rows / EPOCH_ROWS)

    @property
    def first_epochs(self) -> int:
        """Epochs below which not even the first fold is begun."""
        return max(1, math.ceil(MIN_EPOCHS / self.epoch_worth))


def size_of_work(folds: Folds, test_rows: int) -> Work:
    """Return how many rows a fold trains on and scores."""
    used = int((folds.fold >= 0).sum())
    valid = used // folds.num_folds
    train = len(folds.train_rows(None)) - valid  # external images are trained on in every fold
    return Work(train, valid, test_rows, folds.num_folds)


def epochs_in(candidate: Candidate, work: Work, seconds: float, num_members: int) -> float:
    """Return the epochs that ``num_members`` members of all folds can have in ``seconds``."""
    rounds = math.ceil(num_members * work.num_folds / work.num_cards)
    training = max(0.0, seconds / rounds - tail_of(candidate, work))
    return training * candidate.train_rate / work.train_rows


def tail_of(candidate: Candidate, work: Work) -> float:
    """Return the seconds of a fold beside its epochs: a probe, a walk back, all views."""
    views = COMMON["tta_steps"] + (0 if candidate.fixed_size else 2 * TTA_SCALE**2)
    images = work.train_rows / 2 + (2 + views) * work.valid_rows + views * work.test_rows
    return images / (candidate.infer_rate * work.pace) + 4.0


def expected_loss(candidate: Candidate, epochs: float) -> float:
    """Return a number that orders what training in a budget will come to.

    The probe's loss orders sizes and backbones; too few epochs cost what more pixels gain, and
    small images cost a net that is trained more than a probe.
    """
    small = max(1.0, candidate.useful_size / candidate.image_size) ** SMALLNESS
    return candidate.log_loss * (1 + SLOWNESS / max(epochs, 0.1)) * small


def expected_in(candidate: Candidate, work: Work, seconds: float) -> float:
    """Return :func:`expected_loss` where two recipes share the seconds."""
    epochs = min(epochs_in(candidate, work, seconds, 2), MAX_EPOCHS)
    return expected_loss(candidate, epochs * work.epoch_worth)


def rank(found: Sequence[Candidate], work: Work, seconds: float) -> list[Candidate]:
    """Return the candidates, the one to train first in front."""
    return sorted(found, key=lambda candidate: expected_in(candidate, work, seconds))


def costed(name: str, options: Json, candidate: Candidate, work: Work) -> Member:
    """Return a member that costs what training a candidate does."""
    return Member(name, options, work.train_rows / candidate.train_rate, tail_of(candidate, work))


def make_member(
    candidate: Candidate, recipe: str, epochs: int, work: Work, seed: int, name: str
) -> Member:
    """Return a member of so many epochs."""
    options: Json = {"timm_id": candidate.timm_id, "image_size": candidate.image_size}
    options["tta_scale"] = 1.0 if candidate.fixed_size else TTA_SCALE
    options |= RECIPES[recipe] | {"epochs": epochs, "valid_every": max(epochs, 1), "seed": seed}
    if not candidate.stages:
        options.pop("pool", None)
    return costed(name, options, candidate, work)


def probe_member(candidate: Candidate, work: Work, seed: int) -> Member:
    """Return the linear probe of a backbone at a size: a member that is not trained."""
    options = {"timm_id": candidate.timm_id, "image_size": candidate.image_size, "epochs": 0}
    options |= {"head_start": "probe", "norms": "frozen", "seed": seed}
    options["pool"] = "stages" if candidate.stages else "avg"
    rows = work.train_rows + work.valid_rows + work.test_rows
    return Member(f"{candidate.name}_probe", options, 0.0, 2 * rows / candidate.infer_rate)


def has_cheap_probe(candidate: Candidate, work: Work, seconds: float) -> bool:
    """Tell whether a candidate's probe takes no more than its share of the seconds."""
    return probe_member(candidate, work, 0).tail_s <= PROBE_SHARE * seconds


def pick_probes(found: Sequence[Candidate], work: Work, seconds: float, seed: int) -> list[Member]:
    """Return the probes worth their part of the seconds; the cheapest one where none is.

    The best one, then those that take most off its loss.
    """
    chosen: list[Member] = []
    left = PROBES_SHARE * seconds
    for candidate in _by_gain(found):
        probe = probe_member(candidate, work, seed)
        share = min(PROBE_SHARE, SHARE_FOR_GAIN * candidate.gain) if chosen else PROBE_SHARE
        if probe.tail_s <= min(left, share * seconds) and len(chosen) < MAX_PROBES:
            chosen.append(probe)
            left -= probe.tail_s
    every = (probe_member(candidate, work, seed) for candidate in found)
    return chosen or [min(every, key=lambda probe: probe.tail_s)]


def spare_probe(
    found: Sequence[Candidate], taken: Sequence[str], work: Work, seconds: float, seed: int
) -> Member | None:
    """Return a probe that takes something off the others' loss and has time, None without one."""
    for candidate in _by_gain(found):
        probe = probe_member(candidate, work, seed)
        new = candidate.gain > 0 and probe.name not in taken and len(taken) < MAX_PROBES
        if new and probe.tail_s <= seconds:
            return probe
    return None


def _by_gain(found: Sequence[Candidate]) -> list[Candidate]:
    return sorted(found, key=lambda candidate: (-candidate.gain, candidate.log_loss))


def next_member(
    ranked: Sequence[Candidate], taken: Sequence[str], work: Work, seconds: float, seed: int,
    recipes: Sequence[str] = tuple(RECIPES), *, share: int = 1,
) -> Member | None:  # fmt: skip
    """Return the next member worth its time, None where no fold of any has time.

    Both recipes at the best candidate come first, then both at the next backbone, and so on; when
    all have had their turn, again with other seeds. ``ranked`` come from :func:`rank`; ``taken``
    are names there are already. ``recipes`` are those worth going on with, best first; ``share``
    members will share the ``seconds``.
    """
    for turn in range(MAX_MEMBERS):
        for place, candidate in enumerate(_one_each(ranked)):
            for recipe in recipes:
                name = f"{candidate.name}_{recipe}" + (f"_{turn + 1}" if turn else "")
                epochs = epochs_in(candidate, work, seconds, share)
                if not taken:  # fewer folds, if need be, are better than none
                    one_fold = epochs_in(candidate, replace(work, num_folds=1), seconds, 1)
                    epochs = max(epochs, min(MIN_EPOCHS, one_fold))
                if name in taken or epochs < (MIN_EPOCHS if taken else work.first_epochs):
                    continue
                planned = min(MAX_EPOCHS, math.ceil(OPTIMISM * epochs))
                number = seed + turn * len(ranked) + place
                return make_member(candidate, recipe, planned, work, number, name)
    return None


def _one_each(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Return the best size of every backbone first, the other sizes after."""
    best: dict[str, Candidate] = {}
    for candidate in ranked:
        best.setdefault(candidate.timm_id, candidate)
    return [*best.values(), *(c for c in ranked if c not in best.values())]


def first_members(
    ranked: Sequence[Candidate], work: Work, seconds: float, seed: int
) -> list[Member]:
    """Return the members a plan starts with: both recipes where both have time, else one."""
    two = epochs_in(ranked[0], work, seconds, 1) >= TWO_RECIPES_FROM
    members: list[Member] = []
    for _ in range(1 + two):
        taken = [member.name for member in members]
        member = next_member(ranked[:1], taken, work, seconds, seed, share=1 + two)
        members += [member] if member else []
    return members


def write_plan(
    path: Path, members: Sequence[Member], common: Mapping[str, object], head: str
) -> None:
    """Write ``plan.yaml``: rows that ``train_fold.py --config`` takes, with what they cost above.

    ``common`` is its ``train:`` block, ``head`` are lines of comment.
    """
    import yaml

    rows = {member.name: dict(member.options) for member in members}
    lines = "".join(f"# {line}\n" for line in head.splitlines())
    text = yaml.safe_dump(
        {"train": dict(common), "models": rows}, sort_keys=False, allow_unicode=True
    )
    write_text(path, lines + text)


def describe(
    members: Sequence[Member], work: Work, hours: float, spent_s: float, done: Mapping[str, int]
) -> str:
    """Return lines that say what is trained and when it should be done.

    ``done`` are the folds that each member has finished.
    """
    at = spent_s
    lines = [
        f"{hours:g} hours, {at / 60:.1f} minutes spent; {work.num_folds} folds",
        "schedules are trimmed between epochs to end in time; edit rows that have not begun",
    ]
    trained = [member for member in members if member.epochs]
    if len(trained) < len(members):
        lines.append("probes: " + ", ".join(m.name for m in members if not m.epochs))
    for member in trained:
        fold_s = member.epochs / OPTIMISM * member.epoch_s + member.tail_s
        left = work.num_folds - done.get(member.name, 0)
        at += left * fold_s / work.num_cards
        when = f"done at {at / 60:.1f} min" if left else "done"
        lines.append(
            f"{member.name}: {counted(member.epochs, 'epoch')} of {member.epoch_s:.1f} s, "
            f"{fold_s / 60:.1f} min a fold, {when}"
        )
    if not trained:
        lines.append("no time for an epoch of one fold: the linear probe alone")
    return "\n".join(lines)


def known_member(name: str, options: Json, found: Sequence[Candidate], work: Work) -> Member:
    """Return the member of a row of ``plan.yaml``; what it costs is the nearest candidate's."""

    def distance(candidate: Candidate) -> tuple[bool, int]:
        other = candidate.timm_id != options.get("timm_id")
        return other, abs(candidate.image_size - int(options.get("image_size", 0)))

    return costed(name, options, min(found, key=distance), work)
