from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.ensemble.oof import FoldTable, load_oof
from src.ensemble.pool import log_softmax
from src.ensemble.predictions import open_oof, save_oof
from src.files import describe_file, write_json
from src.runs import Run
from src.script import UserError


def test_join_puts_every_model_into_one_order(make_world):
    world = make_world()
    logits = {name: world.logits() for name in ("a", "b")}
    for name, values in logits.items():
        world.save(name, values)
    oof = load_oof(world.root, world.table)
    assert oof.members == (("a", "identity"), ("a", "hflip"), ("b", "identity"), ("b", "hflip"))
    assert oof.models == ("a", "b") and oof.classes == world.classes and not oof.notes
    rows = np.array([world.ids.tolist().index(id_) for id_ in oof.ids])
    np.testing.assert_array_equal(oof.targets, world.targets[rows])
    np.testing.assert_array_equal(oof.folds, np.sort(world.folds))
    some = np.array([0, 5, 120, 299])  # across folds
    for model, view in oof.members:
        expected = logits[model][("identity", "hflip").index(view)][rows[some]]
        expected = log_softmax(expected.astype(np.float16), 2.0)
        np.testing.assert_allclose(oof.read((model, view), some, 2.0), expected, rtol=1e-5)


def test_views_are_limited_and_common(make_world):
    world = make_world()
    for fold in range(3):
        world.save_fold("a", fold, world.logits(views=2 if fold else 3))
    assert len(load_oof(world.root, world.table).members) == 2
    assert len(load_oof(world.root, world.table, tta_steps=1).members) == 1


def test_aliases_are_merged(make_world):
    world = make_world()
    world.save("a", world.logits())
    pairs = [("class_3_가", "class_1_가"), ("unknown", "class_0_가")]
    oof = load_oof(world.root, world.table, alias_groups=pairs)
    assert oof.classes == ("class_0_가", "class_2_가", "class_3_가")
    assert oof.source_classes == world.classes
    plain = load_oof(world.root, world.table)
    rows = np.arange(10)
    probs = np.exp(plain.read(("a", "identity"), rows))
    merged = np.exp(oof.read(("a", "identity"), rows))
    np.testing.assert_allclose(merged[:, 2], probs[:, 1] + probs[:, 3], rtol=1e-5)
    np.testing.assert_array_equal(oof.targets, np.array([0, 2, 1, 2])[plain.targets])


def test_a_missing_fold_restricts_all_models_and_says_so(make_world):
    world = make_world()
    world.save("a", world.logits())
    world.save_fold("b", 1, world.logits())
    oof = load_oof(world.root, world.table)
    assert set(oof.folds) == {1} and len(oof.ids) == 100
    assert "b has no OOF for folds [0, 2]" in oof.notes[0]
    world.save_fold("c", 2, world.logits())
    with pytest.raises(UserError, match=r"no row.*b has folds \[1\].*c has folds \[2\]"):
        load_oof(world.root, world.table)


def test_a_finished_fold_that_lost_its_oof_is_not_left_out(make_world):
    world = make_world()
    world.save("a", world.logits())
    for fold in range(3):
        run = Run(world.root / "a" / f"fold{fold}")
        done = {"config_hash": open_oof(run.oof).config_hash}
        write_json(run.finished, done | {"files": {run.oof.name: describe_file(run.oof)}})
    full = Run(world.root / "a" / "foldfull")
    full.folder.mkdir()
    write_json(full.finished, {"config_hash": "", "files": {}})  # never had any
    assert len(set(load_oof(world.root, world.table).folds)) == 3
    world.save("b", world.logits())
    for left in (1, 0, 2):  # of the last one nothing tells that there is such a model
        (world.root / "a" / f"fold{left}" / "oof.npz").unlink()
        for models in ((), ("a",)):
            with pytest.raises(UserError, match="missing, though its run is finished"):
                load_oof(world.root, world.table, models=models)
    assert load_oof(world.root, world.table, models=["b"]).models == ("b",)
    assert load_oof(world.root, world.table, finished_only=False).models == ("b",)  # a report's


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds_hash": "0" * 16}, "other folds"),
        ({"classes": ("x", "y", "z", "w")}, "classes"),
        ({"fold": "full"}, "of fold 'full'"),
        ({"fold": "2"}, "of fold '2'"),
        ({"targets": np.zeros(100, int)}, "another class for id"),
        ({"ids": np.array(["new", *map(str, range(99))])}, "'new' is not in folds.csv"),
        ({"targets": np.full(100, 9)}, "no class number"),
    ],
)
def test_foreign_files_are_refused_by_name(make_world, changes, message):
    world = make_world()
    world.save("good", world.logits())
    world.save_fold("other", 0, world.logits(), **changes)
    with pytest.raises(UserError, match=message) as error:
        load_oof(world.root, world.table)
    assert "other" in str(error.value) and "\n" not in str(error.value)


def test_duplicate_ids_are_refused(make_world):
    world = make_world(num_rows=30)
    rows = np.flatnonzero(world.folds == 0)
    ids = world.ids[rows]
    ids[1] = ids[0]
    world.save("a", world.logits())
    world.save_fold("a", 0, world.logits(), ids=ids)
    with pytest.raises(UserError, match="occurs twice"):
        load_oof(world.root, world.table)


def test_no_files_and_unknown_models_are_refused(make_world):
    world = make_world()
    with pytest.raises(UserError, match=r"run train_fold\.py first"):
        load_oof(world.root, world.table)
    world.save("a", world.logits())
    with pytest.raises(UserError, match="--models b"):
        load_oof(world.root, world.table, models=["a", "b"])


def test_copies_of_folders_are_no_folds_and_no_models_unseen(make_world):
    world = make_world()
    world.save("a", world.logits())
    for name in ("fold0 (copy)", "fold0_old", "fold00"):
        shutil.copytree(world.root / "a" / "fold0", world.root / "a" / name)
    assert len(load_oof(world.root, world.table).ids) == 300
    shutil.copytree(world.root / "a", world.root / "a copy")  # inference would not find it
    with pytest.raises(UserError, match=r"a copy: no run is called so; .* move it away, .* a_copy"):
        load_oof(world.root, world.table)
    assert load_oof(world.root, world.table, models=["a"]).models == ("a",)


def test_values_that_are_not_finite_are_refused_when_read(make_world):
    world = make_world()
    logits = world.logits()
    logits[0, 7] = np.nan
    world.save("a", logits)
    oof = load_oof(world.root, world.table)
    with pytest.raises(UserError, match="not finite"):
        oof.read(("a", "identity"), np.arange(300))


class Exploit:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize(
    "harm", ["truncate", "garbage", "pickle", "lacking", "float64", "empty", "bit"]
)
def test_broken_files_are_refused(make_world, harm):
    world = make_world(num_rows=3000)  # zipfile itself compares what it reads in one piece
    world.save("a", world.logits())
    path = world.root / "a" / "fold0" / "oof.npz"
    whole = path.read_bytes()
    with np.load(path) as file:
        content = dict(file)
    if harm == "truncate":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "garbage":
        path.write_bytes(b"PK\x03\x04 but not really")
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "bit":  # of a logit, which is read from the map and not by zipfile
        place = whole.index(content["logits"].tobytes()) + content["logits"].nbytes // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif harm == "pickle":
        content["ids"] = np.array([Exploit()] * 100, dtype=object)
        np.savez(path, **content)
    elif harm == "lacking":
        del content["views"]
        np.savez(path, **content)
    else:
        np.savez(path, **(content | {"logits": content["logits"].astype(float)}))
    with pytest.raises(UserError, match="not a whole OOF file") as error:
        open_oof(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_logits_are_mapped_not_loaded(make_world):
    world = make_world()
    world.save("a", world.logits())
    path = world.root / "a" / "fold0" / "oof.npz"
    file = open_oof(path)
    assert isinstance(file.logits, np.memmap)
    with np.load(path) as plain:
        np.testing.assert_array_equal(file.logits, plain["logits"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_float16_range_is_clipped_not_infinite(tmp_path):
    save_oof(
        tmp_path / "oof.npz", logits=np.array([[[1e9, -1e9]]]), ids=["1"], targets=[0],
        views=["identity"], classes=["a", "b"], fold="0", config_hash="c", folds_hash="f",
    )  # fmt: skip
    np.testing.assert_array_equal(open_oof(tmp_path / "oof.npz").logits, [[[65504, -65504]]])


ID = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=8
)


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(ID, min_size=2, max_size=12, unique=True), data=st.data())
def test_any_ids_in_any_order_join(tmp_path_factory, ids, data):
    root = tmp_path_factory.mktemp("oof")
    num = len(ids)
    folds = np.array(data.draw(st.lists(st.integers(0, 2), min_size=num, max_size=num)))
    targets = np.array(data.draw(st.lists(st.integers(0, 1), min_size=num, max_size=num)))
    known = np.array(ids)
    table = FoldTable(known, np.array(["x", "y"])[targets], folds, "h")
    lost = data.draw(st.sets(st.sampled_from(range(num)), max_size=num - 1))
    for model in ("a", "b"):
        for fold in np.unique(folds):
            rows = [r for r in np.flatnonzero(folds == fold) if model == "a" or r not in lost]
            rows = np.array(data.draw(st.permutations(rows)), dtype=int)
            if len(rows):
                logits = np.stack([rows, -rows], axis=1)[None] / 8
                save_oof(
                    root / model / f"fold{fold}" / "oof.npz", logits=logits, ids=known[rows],
                    targets=targets[rows], views=["identity"], classes=["x", "y"],
                    fold=str(fold), config_hash="c", folds_hash="h",
                )  # fmt: skip
    oof = load_oof(root, table)
    # numpy drops trailing NULs only, and those are excluded: ids survive as they are
    assert sorted(oof.ids.tolist()) == sorted(i for r, i in enumerate(ids) if r not in lost)
    rows = np.array([ids.index(id_) for id_ in oof.ids.tolist()])
    np.testing.assert_array_equal(oof.targets, targets[rows])
    for model in ("a", "b"):
        prediction = oof.read((model, "identity"), np.arange(len(rows)))
        np.testing.assert_allclose(prediction[:, 0] - prediction[:, 1], rows / 4, atol=1e-2)
    with pytest.raises(UserError):
        load_oof(root, replace(table, hash="other"))
