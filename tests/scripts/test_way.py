"""From photographs to a submission, through the three scripts."""

from __future__ import annotations

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.kill_resume import WEIGHTS, make_weights
from src.engine.weights import load_weights
from src.pipelines.classification import infer
from tests.scripts.conftest import Place
from tests.tables import read_rows


def test_photographs_become_a_sound_submission(place: Place) -> None:
    header, *rows = read_rows(place.output / "submission.csv")
    assert header == ["ID", "evening", "noon"]
    assert [row[0] for row in rows] == [f"{k:03d}" for k in range(32, 44)]
    probs = np.array([row[1:] for row in rows], float)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    assert (probs > 0).all()
    for name in ("config.yaml", "metrics.csv", "last.pt", "best.safetensors", "oof.npz"):
        assert (place.run / name).exists()
    done = json.loads((place.run / "finished.json").read_text())
    assert done["monitor"] == "calibrated_log_loss"


def test_started_again_everything_is_skipped_or_the_same(place: Place) -> None:
    before = place.whole_results()
    prediction = place.train()
    assert prediction.status == 0 and "finished" in prediction.out and "skipped" in prediction.out
    assert place.optimize().status == place.infer().status == 0
    assert place.whole_results() == before


def test_early_stopping_was_part_of_it(place: Place) -> None:
    rows = [len(list(csv.DictReader(p.open()))) for p in place.output.rglob("metrics.csv")]
    assert len(rows) == 2 and min(rows) >= 2


def test_unreadable_train_images_are_counted_and_listed(fresh: Place) -> None:
    for name, content in {"000": b"", "002": b"not an image", "004": b"\x89PNG\r\n\x1a\n"}.items():
        (fresh.data / "train" / "evening" / f"{name}.png").write_bytes(content)
    prediction = fresh.train("--epochs", "1")
    assert prediction.status == 0, prediction.err
    assert "3" in prediction.out and "quarantine" in prediction.out
    listed = (fresh.output / "quarantine.csv").read_text(encoding="utf-8")
    assert all(f"{name}.png" in listed for name in ("000", "002", "004"))


def test_a_pretrained_net_can_start_from_a_linear_probe_once(fresh: Place) -> None:
    weights = fresh.data.parent / WEIGHTS
    make_weights(weights)
    flags = ("--pretrained", str(weights), "--checkpoint_minutes", "0", "--patience", "0")
    probe = ("--head_start", "probe", "--norms", "frozen", "--head_lr_mult", "1")
    prediction = fresh.train(*flags, *probe, "--epochs", "1")
    assert prediction.status == 0 and "linear head: log loss" in prediction.out
    fresh.run.joinpath("finished.json").unlink()  # as if it had been killed at the very end
    again = fresh.train(*flags, *probe, "--epochs", "1")
    assert again.status == 0 and "linear head" not in again.out and "resuming" in again.out


def test_another_file_of_weights_under_a_runs_name_is_refused(fresh: Place) -> None:
    """Skipped, its folds would be of two nets; gone on with, nobody would know of which."""
    weights = fresh.data.parent / WEIGHTS
    make_weights(weights)
    flags = ("--pretrained", str(weights), "--epochs", "1")
    assert fresh.train(*flags).status == 0
    first = weights.read_bytes()
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    assert fresh.train(*flags).is_one_line("fold0 began from other weights", "restore them")
    other = fresh.data.parent / "other.safetensors"
    shutil.copy(weights, other)  # another option, as it always was
    said = fresh.train(*flags, "--pretrained", str(other))
    assert said.is_one_line("with other options (pretrained was")
    (fresh.run / "finished.json").unlink()
    assert fresh.train(*flags).is_one_line("fold0 began from other weights")
    weights.write_bytes(first)
    assert fresh.train(*flags).status == 0


def test_by_default_a_pretrained_net_has_a_random_head_and_norms_of_the_batch(fresh: Place) -> None:
    weights = fresh.data.parent / WEIGHTS
    make_weights(weights)
    prediction = fresh.train("--pretrained", str(weights), "--epochs", "1")
    assert prediction.status == 0 and "linear head" not in prediction.out
    trained, start = load_weights(fresh.run / "best.safetensors"), load_file(weights)
    assert not torch.equal(trained["backbone.bn1.running_mean"], start["bn1.running_mean"])


def test_the_probe_is_the_head_that_training_starts_from(fresh: Place) -> None:
    weights = fresh.data.parent / WEIGHTS
    make_weights(weights)
    still = ["--lr", "1e-12", "--lr_min", "0", "--epochs", "1"]
    still += ["--ema_decay", "0", "--mixup_alpha", "0"]
    heads = {}
    for start in ("probe", "random"):
        flags = ("--pretrained", str(weights), "--head_start", start, "--name", start, *still)
        assert fresh.train(*flags).status == 0
        heads[start] = load_weights(fresh.output / start / "fold0" / "best.safetensors")
    assert heads["random"]["head.weight"].std() < 0.02
    assert heads["probe"]["head.weight"].std() > 0.02 and heads["probe"]["head.bias"].any()


def test_a_finished_fold_of_other_data_is_not_skipped(place: Place) -> None:
    assert "skipped" in place.train().out
    (place.data / "train" / "noon" / "001.png").rename(place.data / "train" / "evening" / "1.png")
    assert place.train().is_one_line("folds.csv was made for other data")
    (place.output / "folds.csv").unlink()
    assert place.train().is_one_line("fold0", "other images, labels or folds", "delete the folder")


def test_a_fold_that_vanished_is_named_and_never_left_out_unasked(place: Place) -> None:
    shutil.rmtree(place.run)
    assert place.infer().is_one_line("fold 0 of weights.json", "--allow_missing_folds")
    assert place.infer("--allow_missing_folds").status == 0
    assert place.train().status == 0 and place.infer().status == 0  # the remedy


def test_test_images_of_the_same_sizes_are_known_by_their_content(place: Place) -> None:
    before = (place.output / "submission.csv").read_bytes()
    for path in (place.data / "test").iterdir():
        image = cv2.imread(str(path))
        path.with_suffix(".bmp").write_bytes(cv2.imencode(".bmp", image)[1].tobytes())
        path.unlink()
    table = place.data / "test.csv"
    table.write_text(table.read_text().replace(".png", ".bmp"))
    assert place.infer().status == 0
    assert (place.output / "submission.csv").read_bytes() == before
    one, other = sorted((place.data / "test").iterdir())[:2]
    one_bytes, other_bytes = one.read_bytes(), other.read_bytes()
    assert len(one_bytes) == len(other_bytes)
    one.write_bytes(other_bytes)
    other.write_bytes(one_bytes)
    assert place.infer().status == 0
    after = (place.output / "submission.csv").read_bytes()
    assert sorted(row.split(b",", 1)[1] for row in after.splitlines()[1:]) == sorted(
        row.split(b",", 1)[1] for row in before.splitlines()[1:]
    )
    assert after != before


def test_stopped_between_two_files_neither_is_believed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of other images are written, the sidecar that would say so is not."""
    before = (place.output / "submission.csv").read_bytes()
    images = sorted((place.data / "test").iterdir())
    contents = [path.read_bytes() for path in images]
    for path, content in zip(images, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(infer, "save_test_info", stop)
        assert place.infer().status == 130
    assert not (place.run / "test.json").exists()
    for path, content in zip(images, contents, strict=True):
        path.write_bytes(content)
    assert place.infer().status == 0
    assert (place.output / "submission.csv").read_bytes() == before


def test_one_row_at_a_time_is_refused_by_batch_norm_in_one_line(fresh: Place) -> None:
    prediction = fresh.train("--micro_batch_size", "1", "--epochs", "1")
    assert prediction.is_one_line("BatchNorm", "--micro_batch_size of 2")


@pytest.mark.parametrize("lost", ["oof.npz", "config.yaml", "best.safetensors"])
@pytest.mark.parametrize("how", ["gone", "flipped"])
def test_what_a_finished_fold_lost_is_made_again_by_its_command(
    place: Place, lost: str, how: str
) -> None:
    """A file that is gone, or holds a bit that was not written, and the bits of a whole run."""
    path = place.run / lost
    before = path.read_bytes()
    middle = len(before) // 2
    path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
    if how == "gone":
        path.unlink()
    again = place.train()
    assert again.status == 0 and again.out.count(f"{lost} lost or damaged; made again") == 1
    whole = load_weights(path) if lost == "best.safetensors" else None
    if whole is None:
        assert lost == "config.yaml" or path.read_bytes() == before
    else:
        place.run.joinpath("expected").write_bytes(before)
        expected = load_weights(place.run / "expected")
        assert all(torch.equal(expected[name], value) for name, value in whole.items())
    assert "skipped" in place.train().out


@pytest.mark.parametrize("name", ["weights.json", "test_resnet/fold0/test_logits.npy"])
def test_a_flipped_bit_changes_no_submission(place: Place, name: str) -> None:
    submission = (place.output / "submission.csv").read_bytes()
    path = place.output / name
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)
    prediction = place.infer()
    if prediction.status:
        assert prediction.is_one_line(name, "run optimize_weights.py again")
        assert place.optimize().status == 0 and place.infer().status == 0
    assert (place.output / "submission.csv").read_bytes() == submission


def test_predictions_of_another_fold_are_recognised(place: Place) -> None:
    whole = place.whole_results()
    other = place.run.with_name("fold1")
    for name in ("test_logits.npy", "test.json"):  # both: they fit each other
        shutil.copyfile(other / name, place.run / name)
    assert place.infer().status == 0
    assert (place.output / "submission.csv").read_bytes() == whole["submission.csv"]
    shutil.copyfile(other / "oof.npz", place.run / "oof.npz")
    assert place.optimize().is_one_line("oof.npz: of fold '1'", "run its training command again")
    assert place.train().status == 0 and place.optimize().status == 0  # the remedy
    name = (place.run / "best.safetensors").relative_to(place.output).as_posix()
    shutil.copyfile(other / "best.safetensors", place.output / name)
    (place.run / "test.json").unlink()
    assert place.infer().is_one_line("best.safetensors", "run its training command again")
    assert place.train().status == 0
    assert (place.output / name).read_bytes() == whole[name]


def test_oof_of_a_fold_that_is_not_finished_is_refused(place: Place) -> None:
    (place.run / "finished.json").unlink()
    assert place.optimize().is_one_line("not finished", "run its training command again")
    assert place.train().status == 0 and place.optimize().status == 0


def test_a_copy_of_another_fold_under_a_folds_name_is_refused(place: Place) -> None:
    """All its files fit each other, the options and the data; the blend would have it twice."""
    aside = place.output / "aside"
    place.run.rename(aside)
    shutil.copytree(place.run.parent / "fold1", place.run)
    for said in (place.train(), place.infer()):
        assert said.status == 2 and said.is_one_line(f"{place.run} is a copy of fold1", "restore")
    shutil.rmtree(place.run)
    aside.rename(place.run)
    for said in (place.train(), place.infer()):
        assert said.status == 0, said.err


def test_other_aliases_than_a_run_began_with_are_refused(fresh: Place) -> None:
    """Two of three classes are one either way: the net's shape does not tell."""
    dusk = fresh.data / "train" / "dusk"
    dusk.mkdir()
    for path in sorted((fresh.data / "train" / "evening").iterdir())[::2]:
        path.rename(dusk / path.name)
    aliases = fresh.data / "aliases.csv"
    aliases.write_text("class,alias\nevening,dusk\n")
    assert fresh.train("--epochs", "2").status == 0
    (fresh.run / "oof.npz").unlink()
    assert fresh.train("--epochs", "2").status == 0  # made again
    aliases.write_text("class,alias\nnoon,dusk\n")
    for name in ("oof.npz", "finished.json"):  # finished, and stopped
        (fresh.run / name).unlink()
        said = fresh.train("--epochs", "2")
        assert said.status == 2 and said.is_one_line(str(fresh.run), "other aliases", "restore")
    aliases.write_text("class,alias\nevening,dusk\n")
    assert fresh.train("--epochs", "2").status == 0
