import cv2
import pytest

from src.config import FoldConfig
from src.data.canonical import ImageSource
from src.pipelines.classification.prepare import prepare_data
from src.runs import Output
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
    assert "1 unreadable images are quarantined" in capsys.readouterr().out
    assert prepare_data(config, output)[1].folds_hash == made.folds_hash
    assert ImageSource(index.root, index.table["image"].tolist(), 32).fingerprint()
