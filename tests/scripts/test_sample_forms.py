"""Samples that ask for other columns than the classes: what is written, and remedies followed."""

import numpy as np
import pytest

from tests.scripts.conftest import Place
from tests.tables import read_rows


def ask(place: Place, *columns: str) -> None:
    """Let the sample submission ask for these columns."""
    path = place.data / "sample_submission.csv"
    ids = [line.partition(",")[0] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    lines = [",".join(("ID", *columns)), *(f"{name}{',0' * len(columns)}" for name in ids)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def submission(place: Place) -> tuple[list[str], np.ndarray]:
    """Return the columns' names and the probabilities (rows, columns)."""
    header, *rows = read_rows(place.output / "submission.csv")
    return header[1:], np.array([row[1:] for row in rows], float)


def test_columns_for_some_classes_and_for_one_that_has_no_images(place: Place) -> None:
    both = submission(place)[1]  # evening, noon
    assert both.sum(1) == pytest.approx(1) and both.min() > 0.01
    ask(place, "noon")
    assert place.infer().status == 0
    names, probs = submission(place)
    assert names == ["noon"]
    np.testing.assert_allclose(probs[:, 0], both[:, 1], rtol=1e-6)
    ask(place, "dusk", "noon", "evening")
    prediction = place.infer()
    assert prediction.status == 0 and "dusk is no class with training images" in prediction.out
    names, probs = submission(place)
    assert probs.sum(1) == pytest.approx(1) and (probs[:, 0] > 0).all()
    np.testing.assert_allclose(probs[:, 1] / probs[:, 2], both[:, 1] / both[:, 0], rtol=1e-5)


def test_the_remedy_for_a_column_of_another_name_works(place: Place) -> None:
    both = submission(place)[1]
    ask(place, "midday", "evening")
    refused = place.infer()
    assert refused.status == 2 and refused.is_one_line("the line `noon,midday` into aliases.csv")
    (place.data / "aliases.csv").write_text("noon,midday\n", encoding="utf-8")
    for prediction in (place.train("--fold", "all"), place.optimize(), place.infer()):
        assert prediction.status == 0, prediction.err
    names, probs = submission(place)
    assert names == ["midday", "evening"]
    np.testing.assert_allclose(probs, both[:, ::-1], rtol=1e-6)
