import subprocess
import sys
from dataclasses import replace

import cv2
import pytest

from src.config import FoldConfig, config_hash
from src.data.canonical import ImageSource
from src.data.index import read_test
from src.files import write_json
from src.pipelines.classification.prepare import prepare_data, read_form
from src.runs import Output
from src.script import UserError
from tests.data.test_audit_duplicates import photograph


@pytest.fixture
def config(tmp_path):
    for number in range(12):
        path = tmp_path / f"data/train/{'ab'[number % 2]}/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), photograph(number))
    return FoldConfig(data_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "out"), folds=2)


def test_a_dangling_link_is_quarantined_like_any_unreadable_image(tmp_path, config, capsys):
    (tmp_path / "data/train/a/dangling.jpg").symlink_to("/nowhere.jpg")
    output = Output(tmp_path / "out")
    index, made = prepare_data(config, output)
    assert made.fold.tolist().count(-1) == 1 and len(made.fold) == 13
    assert "1 unreadable image quarantined" in capsys.readouterr().out
    assert prepare_data(config, output)[1].folds_hash == made.folds_hash
    assert ImageSource(index.root, index.table["image"].tolist(), 32).fingerprint()


def test_a_number_of_folds_that_nobody_named_is_what_the_data_allow(tmp_path, config, capsys):
    cells = [f"{'ab'[n % 2]}/{n:02}.png,{'ab'[n % 2]},{'xy'[n // 6]}\n" for n in range(12)]
    (tmp_path / "data/train.csv").write_text("image,label,group\n" + "".join(cells))
    with pytest.raises(UserError, match=r"groups \(2\): lower it"):
        prepare_data(replace(config, folds=3), Output(tmp_path / "named"))
    unnamed = replace(config, folds=0)
    assert prepare_data(unnamed, Output(tmp_path / "two"), usual_folds=3)[1].num_folds == 2
    assert "note: 2 folds instead of 3" in capsys.readouterr().out
    (tmp_path / "data/train.csv").unlink()
    assert prepare_data(unnamed, Output(tmp_path / "three"), usual_folds=3)[1].num_folds == 3


def test_folds_that_are_finished_are_met_without_what_trains_them(tmp_path, config):
    output, config = Output(tmp_path / "out"), replace(config, model="resnet18", fold="all")
    folds = prepare_data(config, output)[1]
    done = {"config_hash": config_hash(config), "split_hash": folds.folds_hash, "files": {}}
    for fold in range(2):
        write_json(output.run("resnet18", fold).finished, done)
    flags = ["--model", "resnet18", "--config=", "--data_dir", config.data_dir, "--folds", "2"]
    flags += ["--output_dir", config.output_dir, "--fold", "all"]
    heavy = {"torch", "timm", "pandas", "cv2", "tqdm", "sklearn", "src.mask_config"}
    code = f"import sys, train_fold; train_fold.main({flags}); "
    code += f"assert not {heavy} & {{*sys.modules}}, {heavy} & {{*sys.modules}}"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 0 and said.stdout.count("skipped") == 2, said.stdout + said.stderr


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
@pytest.mark.parametrize(
    ("table", "sample", "wanted"),
    [
        ("image_id,file\n7,a.png\n", "", "image_id"),
        ("file\na.png\n", "", "file"),
        ("", "", "ID"),
        ("image_id,file\n7,a.png\n", "Id,cat,dog\n7,0,0\n", "Id"),
        ("image_id,file\n7,a.png\n", "Key,Predicted\n7_cat,0\n7_dog,0\n", "Key"),
    ],
)
def test_ids_are_headed_as_in_the_sample_else_as_in_test_csv(
    tmp_path, metric, table, sample, wanted
):
    (tmp_path / "test").mkdir()
    cv2.imwrite(str(tmp_path / "test" / "a.png"), photograph(0))
    for name, text in (("test.csv", table), ("sample_submission.csv", sample)):
        if text:
            (tmp_path / name).write_text(text)
    index = read_test(tmp_path)
    form = read_form(
        tmp_path, ["cat", "dog"], metric=metric, ordinal=(), ids=index.columns["id"],
        id_name=index.id_name,
    )  # fmt: skip
    assert form.header[0] == wanted
