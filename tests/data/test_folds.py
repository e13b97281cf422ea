import csv

import numpy as np
import pandas as pd
import pytest

from src.data.folds import load_folds, make_folds, read_folds, save_folds
from src.script import UserError
from tests.data.layout import refused


@pytest.fixture
def data(tmp_path):
    """Twelve files of different sizes, two classes, no groups."""
    root = tmp_path / "data"
    root.mkdir()
    names = [f"{number:02}.jpg" for number in range(12)]
    for number, name in enumerate(names):
        (root / name).write_bytes(b"x" * (number + 1))
    table = pd.DataFrame(
        {
            "id": [f"id-{name}" for name in names],
            "image": names,
            "target": ["가", "=b()"] * 6,
            "group": [""] * 12,
        },
        dtype="str",
    )
    return table, root


def changed(table, row, **cells):
    table = table.copy()
    for name, cell in cells.items():
        table.loc[row, name] = cell
    return table


def test_round_trip(tmp_path, data):
    table, root = data
    made = make_folds(table, root, num_folds=3, seed=0)
    assert sorted(np.bincount(made.fold)) == [4, 4, 4] and made.notes == ()
    save_folds(made, tmp_path / "out/folds.csv")
    read = load_folds(tmp_path / "out/folds.csv", table, root, num_folds=3)
    assert (read.fold == made.fold).all() and read.fold.dtype == np.int64
    assert (read.data_hash, read.folds_hash) == (made.data_hash, made.folds_hash)
    assert read.num_folds == 3
    with (tmp_path / "out/folds.csv").open(encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == [
        "id",
        "image",
        "target",
        "group",
        "fold",
        "content",
        "data_hash",
        "rows_hash",
    ]
    assert lines[2][:3] == ["id-01.jpg", "01.jpg", "'=b()"]  # no formula for a spreadsheet
    assert lines[2][4:7] == [str(made.fold[1]), made.table["content"][1], made.data_hash]


def test_blending_reads_them_without_the_images(tmp_path, data):
    table, root = data
    made = make_folds(table, root, num_folds=3, seed=0, quarantined=[2])
    refused(r"folds\.csv is missing: run train_fold\.py first", read_folds, tmp_path / "folds.csv")
    save_folds(made, tmp_path / "folds.csv")
    for image in root.iterdir():
        image.unlink()
    read = read_folds(tmp_path / "folds.csv")
    assert read.folds_hash == made.folds_hash and (read.fold == made.fold).all()
    assert read.table["target"].tolist() == table["target"].tolist()


def test_rows_of_a_fold(data):
    table, root = data
    folds = make_folds(table, root, num_folds=3, seed=0, quarantined=[5])
    assert folds.fold[5] == -1 and (np.delete(folds.fold, 5) >= 0).all()
    for fold in range(3):
        train, valid = folds.train_rows(fold), folds.valid_rows(fold)
        assert sorted([*train, *valid]) == [row for row in range(12) if row != 5]
        assert (folds.fold[valid] == fold).all()
    assert len(folds.train_rows(None)) == 11


def test_row_order_does_not_matter(tmp_path, data):
    table, root = data
    made = make_folds(table, root, num_folds=3, seed=0)
    save_folds(made, tmp_path / "folds.csv")
    turned = table.iloc[::-1].reset_index(drop=True)
    read = load_folds(tmp_path / "folds.csv", turned, root)
    assert (read.fold == made.fold[::-1]).all() and read.folds_hash == made.folds_hash
    assert read.table["image"].tolist() == turned["image"].tolist()


def test_groups_and_duplicates_stay_together(tmp_path, data):
    table, root = data
    for row in (0, 1, 2):
        table = changed(table, row, group="=g")
    made = make_folds(table, root, num_folds=3, seed=0, linked=[(2, 7), (7, 8), (10, 11)])
    assert len(set(made.fold[[0, 1, 2, 7, 8]])) == 1 and len(set(made.fold[[10, 11]])) == 1
    assert made.table["group"].tolist()[7] == "=g"
    save_folds(made, tmp_path / "folds.csv")  # the data's own groups are what is compared
    assert (load_folds(tmp_path / "folds.csv", table, root).fold == made.fold).all()


def test_small_classes_and_uneven_folds_are_said_aloud(data):
    table, root = data
    table = changed(table, 0, target="rare")
    notes = make_folds(table, root, num_folds=3, seed=0).notes
    assert len(notes) == 1 and "1 class with fewer images" in notes[0] and "rare (1)" in notes[0]
    for row in range(8):
        table = changed(table, row, group="g")
    assert "folds are uneven" in make_folds(table, root, num_folds=3, seed=0).notes[-1]


def test_changed_data_stop_the_run_and_are_named(tmp_path, data):
    table, root = data
    path = tmp_path / "folds.csv"
    save_folds(make_folds(table, root, num_folds=3, seed=0), path)

    def message(now):
        with pytest.raises(UserError, match=r"folds\.csv was made for other data") as caught:
            load_folds(path, now, root)
        text = str(caught.value)
        assert "delete folds.csv" in text and "--output_dir" in text and "\n" not in text
        return text

    (root / "new.jpg").write_bytes(b"new")
    new = pd.DataFrame([["new", "new.jpg", "가", ""]], columns=table.columns, dtype="str")
    assert "1 added (first new)" in message(pd.concat([table, new], ignore_index=True))
    assert "2 removed (first id-10.jpg)" in message(table.iloc[:10])
    assert "1 relabelled (first id-03.jpg)" in message(changed(table, 3, target="가"))
    both = message(changed(table, 3, id="other"))
    assert "1 added (first other), 1 removed (first id-03.jpg)" in both
    assert "the groups changed" in message(changed(table, 3, group="g"))
    (root / "04.jpg").write_bytes(b"another")
    assert "1 changed on disk (first id-04.jpg)" in message(table)


def test_modification_times_do_not_matter(tmp_path, data):
    table, root = data
    save_folds(make_folds(table, root, num_folds=3, seed=0), tmp_path / "folds.csv")
    (root / "04.jpg").touch()
    load_folds(tmp_path / "folds.csv", table, root)


def test_another_number_of_folds_is_refused(tmp_path, data):
    table, root = data
    save_folds(make_folds(table, root, num_folds=3, seed=0), tmp_path / "folds.csv")
    refused(
        "has 3 folds, not 5: pass --folds 3",
        load_folds,
        tmp_path / "folds.csv",
        table,
        root,
        num_folds=5,
    )


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "\n".join(text.split("\n")[:-2]) + "\n",
        lambda text: text.replace("content", "contents"),
        lambda text: text[:150],
        lambda text: "\n".join(text.split("\n")[:3]) + "\n",
        lambda text: text.replace("id-03.jpg", "id-99.jpg"),
        lambda text: text.replace("가", "나", 1),
        lambda text: text.replace("id-03.jpg", "id-04.jpg"),
        lambda text: text.replace(",1,", ",one,"),
        lambda text: "",
    ],
)
def test_a_damaged_file_is_named(tmp_path, data, harm):
    table, root = data
    path = tmp_path / "folds.csv"
    save_folds(make_folds(table, root, num_folds=3, seed=0), path)
    path.write_text(harm(path.read_text(encoding="utf-8")), encoding="utf-8")
    refused(r"folds\.csv is (damaged|empty|not a well-formed)", read_folds, path)
    refused(r"folds\.csv", load_folds, path, table, root)


def test_a_failed_write_leaves_the_old_file(tmp_path, data, monkeypatch):
    table, root = data
    path = tmp_path / "folds.csv"
    save_folds(make_folds(table, root, num_folds=3, seed=0), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_folds(make_folds(table, root, num_folds=4, seed=0), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir() if p.is_file()] == [
        "folds.csv"
    ]


def test_fewer_folds_will_do_only_where_they_may(data):
    table, root = data
    table["group"] = ["left", "right"] * 6
    made = make_folds(table, root, num_folds=5, seed=0, fewer=True)
    assert made.num_folds == 2 and sorted(np.bincount(made.fold)) == [6, 6]
    assert made.notes == ("2 folds instead of 5: there are no more groups or images",)
    refused(r"--folds 5 .* groups \(2\): lower it", make_folds, table, root, num_folds=5, seed=0)
    made = make_folds(table.iloc[:4], root, num_folds=5, seed=0, linked=[(0, 2)], fewer=True)
    assert made.num_folds == 2, "copies join groups"
    made = make_folds(table.iloc[:3].assign(group=""), root, num_folds=5, seed=0, fewer=True)
    assert made.num_folds == 3 and made.notes[0].startswith("3 folds instead of 5")
    table["group"] = "one"
    refused(
        r"groups \(1\): at least two are needed",
        make_folds,
        table,
        root,
        num_folds=5,
        seed=0,
        fewer=True,
    )


def test_a_vanished_image_is_named(data):
    table, root = data
    (root / "04.jpg").unlink()
    refused(r"04\.jpg cannot be read", make_folds, table, root, num_folds=3, seed=0)


def test_hash_tells_moved_from_equal_assignments(data):
    table, root = data
    one, same, other = (make_folds(table, root, num_folds=3, seed=s) for s in (0, 0, 1))
    assert one.folds_hash == same.folds_hash != other.folds_hash
    assert one.data_hash == other.data_hash


def test_images_of_equal_size_are_not_the_same_images(tmp_path, data):
    table, root = data
    (root / "04.jpg").write_bytes(b"y" * 100_000)
    save_folds(make_folds(table, root, num_folds=3, seed=0), tmp_path / "folds.csv")
    (root / "04.jpg").write_bytes(b"z" * 100_000)
    refused(
        r"1 changed on disk \(first id-04\.jpg\)", load_folds, tmp_path / "folds.csv", table, root
    )


def test_a_quarantined_image_may_be_gone_and_others_may_not(tmp_path, data):
    table, root = data
    (root / "04.jpg").unlink()
    (root / "04.jpg").symlink_to("nowhere")
    made = make_folds(table, root, num_folds=3, seed=0, quarantined=[4])
    save_folds(made, tmp_path / "folds.csv")
    assert load_folds(tmp_path / "folds.csv", table, root).folds_hash == made.folds_hash
    (root / "05.jpg").unlink()
    refused(r"05\.jpg cannot be read", load_folds, tmp_path / "folds.csv", table, root)


def test_folds_may_be_dealt_by_hand(tmp_path, data):
    table, root = data
    path = tmp_path / "folds.csv"
    made = make_folds(table, root, num_folds=3, seed=0)
    save_folds(made, path)
    rows = list(csv.reader(path.open(encoding="utf-8")))
    for number, row in enumerate(rows[1:]):
        row[4] = str(number % 2)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    dealt = load_folds(path, table, root)
    assert dealt.fold.tolist() == [0, 1] * 6 and dealt.num_folds == 2
    assert dealt.data_hash == made.data_hash and dealt.folds_hash != made.folds_hash


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_folds_that_a_spreadsheet_saved_are_the_same(tmp_path, data, separator):
    table, root = data
    made = make_folds(table, root, num_folds=3, seed=0)
    save_folds(made, path := tmp_path / "folds.csv")
    plain = read_folds(path)
    rows = path.read_text().splitlines()
    text = "".join(f"{row.replace(',', separator)}\r\n" for row in rows)
    path.write_bytes(text.encode("utf-8-sig"))
    assert read_folds(path).folds_hash == plain.folds_hash == made.folds_hash
    pd.testing.assert_frame_equal(read_folds(path).table, plain.table)


@pytest.mark.parametrize("fold", ["9" * 30, "9" * 5000, "1000", "1.5", "", "-3", "⁴"])
def test_a_fold_that_is_no_number_of_one_is_refused(tmp_path, data, fold):
    table, root = data
    save_folds(make_folds(table, root, num_folds=3, seed=0), path := tmp_path / "folds.csv")
    rows = [line.split(",") for line in path.read_text().splitlines()]
    rows[1][4] = fold
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    refused("is damaged", read_folds, path)
