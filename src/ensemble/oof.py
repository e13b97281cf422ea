"""Out-of-fold predictions of all models, joined by id to one memory-mapped table of logits.

Nothing is loaded but ids and targets: the logits stay on disk and are mapped, so a pass over all
members needs the memory of one block of rows. The files are plain ``npz`` and are read without
unpickling anything (``predictions.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.classes import STATES, merge_classes, nfc, to_hot
from src.ensemble.pool import Member, member_log_probs
from src.ensemble.predictions import OofFile, open_oof, pair_ids
from src.metrics.classification import Array
from src.runs import AFRESH, GO_ON, REPAIR, Run, files_of_folds, read_done, safe_name
from src.script import UserError, counted
from src.views import base_view


@dataclass(frozen=True)
class FoldTable:
    """Who is in which fold, as ``output/folds.csv`` says."""

    ids: Array  # (N,) text
    targets: Array  # (N,) class names
    folds: Array  # (N,) fold numbers
    hash: str  # content hash that every OOF file repeats
    groups: Array | None = None  # (N,) text, "" = a row of its own; None = no row has one

    @classmethod
    def of(cls, folds: Any) -> FoldTable:
        """Return the rows of ``folds.csv`` (:class:`src.data.folds.Folds`) that are in a fold."""
        used = folds.fold >= 0  # the others are quarantined
        ids, targets, groups = (
            folds.table[name].to_numpy(dtype=str)[used] for name in ("id", "target", "group")
        )
        return cls(ids, targets, folds.fold[used], folds.folds_hash, groups)


@dataclass(frozen=True)
class Oof:
    """The rows that every model has predicted out of fold, in one order for all."""

    members: tuple[Member, ...]  # (model, view) pairs
    classes: tuple[str, ...]  # K class names, aliases merged
    source_classes: tuple[str, ...]  # K0 class names of the logits
    ids: Array  # (N,) text
    targets: Array  # (N,) class numbers in [0, K)
    folds: Array  # (N,) fold numbers, ascending
    folds_hash: str  # content hash of the folds
    # model → fold → hash of the config it was trained with
    config_hashes: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...] = ()  # what the user should know about rows left out
    # L names where an image may have several labels; () = one class each. N is then images ×
    # labels, image by image, and the classes are absent and present
    labels: tuple[str, ...] = ()
    # (N,) text, "" = a row of its own
    groups: Array = field(default_factory=lambda: np.array([], dtype=str))
    _columns: tuple[int, ...] = ()
    _files: Mapping[str, Mapping[int, OofFile]] = field(default_factory=dict)
    _places: Mapping[str, Array] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """Model names in the order of the members."""
        return tuple(dict.fromkeys(model for model, _ in self.members))

    def read(self, member: Member, rows: Array, temperature: float = 1.0) -> Array:
        """Return log probabilities (R, K) float32 of the ascending row numbers ``rows`` (R,).

        Raises:
            UserError: the file holds values that are not finite.
        """
        model, view = member
        raw = np.empty((len(rows), len(self._columns)), dtype=np.float32)
        folds = self.folds[rows]
        for fold in np.unique(folds):
            file = self._files[model][int(fold)]
            here = folds == fold
            raw[here] = file.logits[file.views.index(view), self._places[model][rows[here]]]
        if not np.isfinite(raw).all():
            raise UserError(
                f"{self._files[model][int(folds[0])].path.parent.parent}: OOF logits are not "
                f"finite; {AFRESH}"
            )
        return member_log_probs(raw, temperature, self._columns, len(self.classes))


def find_models(output_dir: Path) -> tuple[str, ...]:
    """Return the names of the folders below ``output_dir`` that hold OOF predictions, sorted.

    Raises:
        UserError: one that inference would not find.
    """
    found = sorted(p.name for p in output_dir.glob("*") if files_of_folds(p, "oof.npz"))
    odd = next((name for name in found if safe_name(name) != name), None)
    if odd is not None:
        raise UserError(
            f"{output_dir / odd}: no run is called so; if it is a copy, move it away, else rename "
            f"it to {safe_name(odd)}"
        )
    return tuple(found)


def load_oof(
    output_dir: Path,
    folds: FoldTable,
    *,
    models: Sequence[str] = (),
    alias_groups: Sequence[Sequence[str]] = (),
    tta_steps: int = 0,
    finished_only: bool = True,
) -> Oof:
    """Join the OOF predictions of ``models`` against the folds.

    Args:
        output_dir: holds ``<model>/fold<k>/oof.npz``.
        folds: the folds every file must have been made with.
        models: which models; empty means all that are found.
        alias_groups: class names that mean the same; their columns are added up.
        tta_steps: use only the first so many views of each model, at whatever size; 0 means all.
        finished_only: refuse the OOF predictions of runs that are not finished, and finished runs
            that have lost theirs.

    Raises:
        UserError: no OOF file, or one that is lost; a file of other folds or another class list,
            ids that the folds do not know or have elsewhere, or no row that all models share.
    """
    if finished_only:
        for folder in [output_dir / name for name in models] or sorted(output_dir.glob("*")):
            _refuse_lost(folder)
    names = tuple(dict.fromkeys(models)) or find_models(output_dir)
    if not names:
        raise UserError(f"{output_dir}: no <model>/fold<k>/oof.npz; run train_fold.py first")
    files = {name: _open_model(output_dir, name, folds, finished_only) for name in names}
    reference = next(iter(files[names[0]].values()))
    _check_classes(files, reference)
    labels = reference.classes if reference.several else ()
    if labels:
        folds = _pair_folds(folds, labels)
        files = {
            name: {fold: file.as_pairs() for fold, file in model.items()}
            for name, model in files.items()
        }
        reference = next(iter(files[names[0]].values()))
    position = {id_: row for row, id_ in enumerate(folds.ids.tolist())}
    places = {name: _place(files[name], folds, position) for name in names}
    rows, notes = _common_rows(places, folds)
    merged = merge_classes(reference.classes, alias_groups)
    known = {nfc(n): k for n, k in zip(merged.classes, merged.trained_of, strict=True)}
    known |= {nfc(name): k for name, k in merged.outside}
    targets = _common_targets(files, places, rows, folds, known, np.asarray(merged.trained_of))
    members = tuple(
        (name, view) for name in names for view in _common_views(files[name], tta_steps)
    )
    return Oof(
        members=members,
        classes=merged.trained,
        source_classes=reference.classes,
        ids=folds.ids[rows],
        targets=targets,
        folds=folds.folds[rows],
        folds_hash=folds.hash,
        config_hashes={
            name: {str(k): file.config_hash for k, file in sorted(files[name].items())}
            for name in names
        },
        notes=notes,
        labels=labels,
        groups=np.full(len(rows), "") if folds.groups is None else folds.groups[rows],
        _columns=merged.trained_of,
        _files=files,
        _places={name: place[rows] for name, place in places.items()},
    )


def _pair_folds(folds: FoldTable, labels: Sequence[str]) -> FoldTable:
    """Return the table of pairs of images and labels."""
    hot = to_hot(folds.targets.tolist(), labels).ravel()
    ids = pair_ids(folds.ids, len(labels))
    groups = np.char.add("image ", folds.ids) if folds.groups is None else folds.groups
    groups = np.where(groups == "", np.char.add("image ", folds.ids), groups)
    targets, size = np.array(STATES)[hot], len(labels)
    repeated = np.repeat(folds.folds, size), folds.hash, np.repeat(groups, size)
    return FoldTable(ids, targets, *repeated)


def _open_model(
    output_dir: Path, name: str, folds: FoldTable, finished_only: bool
) -> dict[int, OofFile]:
    paths = files_of_folds(output_dir / name, "oof.npz")
    if not paths:
        raise UserError(
            f"--models {name}: no {output_dir / name}/fold<k>/oof.npz; train it with "
            f"`python train_fold.py --model {name}`"
        )
    files: dict[int, OofFile] = {}
    for path in paths:
        file = open_oof(path)
        if file.folds_hash != folds.hash:
            raise UserError(
                f"{path}: made with other folds ({file.folds_hash[:12]}) than folds.csv "
                f"({folds.hash[:12]}); {AFRESH}"
            )
        if not file.fold.isdigit() or f"fold{file.fold}" != path.parent.name:
            raise UserError(f"{path}: of fold {file.fold!r}; {REPAIR}")
        _refuse_strange(file, finished_only)
        files[int(file.fold)] = file
    return files


def _refuse_lost(folder: Path) -> None:
    """Raise a UserError where a finished fold of a model has no OOF file any more."""
    for path in files_of_folds(folder, "finished.json"):
        run = Run(path.parent)
        if not run.oof.exists() and run.oof.name in read_done(run).get("files", {}):
            raise UserError(f"{run.oof}: missing, though its run is finished; {REPAIR}")


def _refuse_strange(file: OofFile, finished_only: bool) -> None:
    """Raise a UserError where the run beside an OOF file is another, or not finished."""
    run = Run(file.path.parent)
    if run.finished.is_file():
        if read_done(run)["config_hash"] != file.config_hash:
            raise UserError(f"{file.path}: of a run with other options; {REPAIR}")
    elif finished_only and run.config.is_file():  # killed before its end, or finished.json is lost
        raise UserError(f"{file.path}: of a run that is not finished; {GO_ON}")


def _check_classes(files: Mapping[str, Mapping[int, OofFile]], reference: OofFile) -> None:
    for file in (file for model in files.values() for file in model.values()):
        if file.classes != reference.classes or file.several != reference.several:
            raise UserError(
                f"{file.path}: its {len(file.classes)} classes are not the {len(reference.classes)}"
                f" of {reference.path}; train both on the same data and aliases"
            )


def _place(files: Mapping[int, OofFile], folds: FoldTable, position: Mapping[str, int]) -> Array:
    """Return for each row of the folds its row in the model's file of that fold; -1 without."""
    places = np.full(len(folds.ids), -1, dtype=np.int64)
    for fold, file in files.items():
        for place, id_ in enumerate(file.ids.tolist()):
            row = position.get(id_, -1)
            if row < 0 or int(folds.folds[row]) != fold:
                where = "is not in folds.csv" if row < 0 else f"is in fold {folds.folds[row]} there"
                raise UserError(f"{file.path}: id {id_!r} {where}; {AFRESH}")
            if places[row] >= 0:
                raise UserError(f"{file.path}: id {id_!r} occurs twice; {AFRESH}")
            places[row] = place
    return places


def _common_rows(places: Mapping[str, Array], folds: FoldTable) -> tuple[Array, tuple[str, ...]]:
    """Return the rows all models have, sorted by fold, and notes about what is left out."""
    has = {name: place >= 0 for name, place in places.items()}
    common = np.logical_and.reduce(list(has.values()))
    if not common.any():
        lacking = ", ".join(
            f"{name} has folds {sorted(set(folds.folds[rows].tolist()))}"
            for name, rows in has.items()
        )
        raise UserError(f"no row was predicted by all models ({lacking}); train the same folds")
    notes = []
    for name, there in has.items():
        missing = sorted(set(folds.folds.tolist()) - set(folds.folds[there].tolist()))
        if missing:
            notes.append(f"{name} has no OOF for folds {missing}: the rest is used for all models")
        elif not there.all():
            notes.append(
                f"{name} lacks {counted(int((~there).sum()), 'row')} of folds.csv: left out"
            )
    rows = np.flatnonzero(common)
    return rows[np.argsort(folds.folds[rows], kind="stable")], tuple(notes)


def _common_targets(
    files: Mapping[str, Mapping[int, OofFile]],
    places: Mapping[str, Array],
    rows: Array,
    folds: FoldTable,
    known: Mapping[str, int],
    columns: Array,
) -> Array:
    """Return (N,) merged class numbers; all models and the folds must agree on them."""
    agreed: Array | None = None
    classes_of = np.array([known.get(nfc(name), -1) for name in folds.targets[rows].tolist()])
    for name, model in files.items():
        targets = np.empty(len(rows), dtype=np.int64)
        for fold, file in model.items():
            here = folds.folds[rows] == fold
            targets[here] = columns[file.targets[places[name][rows[here]]]]
        if agreed is not None and not np.array_equal(agreed, targets):
            row = int(np.flatnonzero(agreed != targets)[0])
            raise UserError(
                f"{name}: another class for id {str(folds.ids[rows[row]])!r} than the other models "
                f"have; train it again on the present labels"
            )
        _refuse_other_targets(name, targets, classes_of, folds, rows)
        agreed = targets
    assert agreed is not None
    return agreed


def _refuse_other_targets(
    name: str, targets: Array, classes_of: Array, folds: FoldTable, rows: Array
) -> None:
    """Raise a UserError where a model learned another class for a row than ``folds.csv`` has."""
    wrong = np.flatnonzero((classes_of >= 0) & (classes_of != targets))
    if len(wrong):
        raise UserError(
            f"{name}: another class for id {str(folds.ids[rows[wrong[0]]])!r} than folds.csv has; "
            f"{AFRESH}"
        )


def _common_views(files: Mapping[int, OofFile], tta_steps: int) -> tuple[str, ...]:
    """Return the views that every fold of a model has, in their order; of them the first."""
    first = next(iter(files.values())).views
    common = [v for v in first if all(v in file.views for file in files.values())]
    kept = [v for v in common if base_view(v) == v][: tta_steps or None]
    return tuple(v for v in common if base_view(v) in kept)
