"""``train_fold.py --dry_run``: what would be read, with no torch and nothing written."""

import subprocess
import sys

import pytest

from src.config import FoldConfig
from src.pipelines.classification.prepare import show_data
from src.runs import Output
from src.script import UserError
from tests.data.layout import lay


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    for number in range(24):
        lay(root, f"train/{number}.jpg")
    lay(root, "test/x.jpg")
    lines = "".join(f"{n}.jpg,{('bath', 'kitchen')[n % 2]},h{n // 4}\n" for n in range(24))
    return lay(root, train=f"image,room,house\n{lines}", sample_submission="id,kitchen\nx,0\n")


def test_everything_is_shown_and_nothing_written(tmp_path, data, capsys):
    config = FoldConfig(data_dir=str(data), output_dir=str(tmp_path / "out"), folds=3)
    show_data(config, Output(tmp_path / "out"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        f"{data}: 24 training images, 2 classes",
        "note: train.csv: image = image, label = room (the one column of few different words), "
        "group = house",
        "  bath          12",
        "  kitchen       12",
    ]
    assert lines[4:8] == ["folds (not made yet):"] + [
        f"  {fold}: 8 images, 2 classes, 2 groups" for fold in range(3)
    ]
    assert lines[8] == "test: 1 image, first x = test/x.jpg"
    assert "asks for kitchen (1 of 1 columns are class names, of 2 classes)" in lines[9]
    assert any("asks for 1 of 2 classes" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_one_class_of_a_fold_is_no_plural(tmp_path, capsys):
    data = lay(tmp_path / "data", *(f"train/{name}/{n}.jpg" for name in "ab" for n in range(3)))
    lay(data, "val/a/9.jpg")
    show_data(FoldConfig(data_dir=str(data), folds=4), Output(tmp_path / "out"))
    out = capsys.readouterr().out
    assert ": 1 image, 1 class\n" in out and ": 2 images, 2 classes\n" in out
    assert "note: 1 image of val/ is trained on too" in out


def test_what_would_stop_later_is_said(tmp_path, data, capsys):
    lay(data, sample_submission="id,kitchen,bathe\ny,0,0\n")
    show_data(FoldConfig(data_dir=str(data), output_dir=str(tmp_path)), Output(tmp_path / "out"))
    out = capsys.readouterr().out
    assert "stop at the test images: " in out and "first 'y'" in out
    assert "stop at the sample submission: " in out and "`bath,bathe` into aliases.csv" in out


def test_a_mistake_is_the_one_of_training(tmp_path):
    config = FoldConfig(data_dir=str(tmp_path), output_dir=str(tmp_path))
    with pytest.raises(UserError, match="no data set"):
        show_data(config, Output(tmp_path))


def test_the_script_needs_no_model_and_no_torch(tmp_path, data):
    code = (
        "import sys; from train_fold import main; "
        f"main(['--dry_run', '--data_dir', {str(data)!r}, '--output_dir', {str(tmp_path / 'o')!r}])"
        "; assert not {'torch', 'timm'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was written" in done.stdout and not (tmp_path / "o").exists()


def test_a_sample_of_labels_and_the_metric_are_shown(tmp_path, data, capsys):
    (data / "sample_submission.csv").write_text("id,room\nx,kitchen\n")
    flags = {"data_dir": str(data), "output_dir": str(tmp_path / "out"), "folds": 3}
    show_data(FoldConfig(**flags, metric="qwk", ordinal=("kitchen", "bath")), Output(tmp_path))
    said = capsys.readouterr().out
    assert "metric: qwk of labels, grades kitchen < bath" in said
    assert "sample submission: 1 row, ids in id, asks for room: one label" in said
    with pytest.raises(UserError, match="--ordinal bath kitchen"):
        show_data(FoldConfig(**flags, metric="qwk"), Output(tmp_path))
