"""scripts/report.py: a page of the tiny competition, whole or with files missing or damaged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.ensemble.diagnosis import diagnose, mean_blend
from src.ensemble.oof import load_oof
from src.page import page
from src.pipelines import watch
from src.pipelines.classification import heatmaps, panels
from tests.browser import show
from tests.scripts.conftest import MODEL, Place

SECTIONS = (
    "Forecast", "Runs", "Learning curves", "OOF by model, view and fold", "Blend", "Reliability",
    "Classes", "Confused pairs", "Costliest mistakes",
)  # fmt: skip


def write(place: Place, *flags: str) -> str:
    """Write the report and return the page."""
    done = place.start("scripts.report", "--device", "cpu", *flags)
    assert done.status == 0 and "index.html written" in done.out, done.err
    return (place.output / "report" / "index.html").read_text(encoding="utf-8")


def headings(html: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", html)


def test_a_trained_competition_shows_all_panels(place: Place) -> None:
    before = place.whole_results()
    html = write(place, "--examples", "3")
    assert headings(html) == list(SECTIONS)
    forecast = json.loads((place.output / "prediction.json").read_text())["test_log_loss"]
    for name in ("value", "low", "high"):
        assert f"{forecast[name]:.4f}" in html
    done = json.loads((place.run / "finished.json").read_text())
    assert f'data-v="{done["score"]!r}"' in html and html.count("<td>finished</td>") == 2
    assert html.count("data:image/jpeg;base64,") >= 3 and "<td>evening</td>" in html
    kept = {name: data for name, data in place.whole_results().items() if "report/" not in name}
    assert kept == before, "a report changes nothing"


def test_no_network_is_imported_where_no_masks_were_trained(place: Place) -> None:
    code = (
        "import sys; from scripts.report import main; "
        f"main(['--output_dir', {str(place.output)!r}, '--data_dir', {str(place.data)!r}])"
        "; assert not {'torch', 'timm'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_heat_maps_stand_beside_the_photographs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write(place, "--examples", "2", "--heatmaps")  # 32 px leave a map of one cell
    monkeypatch.setattr(heatmaps, "MIN_CELLS", 1)
    shown = write(place, "--examples", "2", "--heatmaps")
    assert shown.count("data:image/jpeg") == plain.count("data:image/jpeg") + 2
    assert "was seen in" in shown and "was seen in" not in plain


def test_a_browser_opens_it_without_complaint(place: Place) -> None:
    write(place, "--examples", "3")
    wide = (
        "const broken = [...document.images].filter(i => !i.naturalWidth).length;"
        "document.body.insertAdjacentHTML('beforeend', `<pre id=seen>${broken} "
        "${document.documentElement.scrollWidth <= innerWidth}</pre>`);"
    )
    page_path = place.output / "report" / "index.html"  # test_page.py: with its security policy
    html, console = show(page_path, do=f"addEventListener('load', () => {{{wide}}});")
    assert not console
    assert '<pre id="seen">0 true</pre>' in html, "pictures load, nothing is wider than a phone"


def test_before_blend_and_data_the_rest_is_shown(place: Place) -> None:
    for name in ("weights.json", "prediction.json"):
        (place.output / name).unlink()
    shutil.rmtree(place.data)
    (place.output / MODEL / "fold1" / "finished.json").unlink()
    html = write(place)
    assert headings(html) == list(SECTIONS)
    assert "no blend yet" in html and "no photographs: data folder" in html
    assert "accept_changes" not in html, "options that only a running fold states do not differ"
    assert "jpeg" not in html and re.search(r"<td>at epoch \d+ of 5</td>", html)


def test_a_damaged_file_is_named_in_its_place(place: Place) -> None:
    (place.output / "weights.json").write_text("{")
    (place.output / "prediction.json").write_text("[]")
    (place.run / "metrics.csv").write_bytes(b"epoch\n\xff,,,\n1,2,3\n")
    html = write(place)
    assert "weights.json: " in html and headings(html) == list(SECTIONS)
    done = place.output / MODEL / "fold1" / "finished.json"
    whole = done.read_bytes()
    done.write_text('{"score": "high"')
    html = write(place)  # OOF predictions count only where their run says that they are whole
    assert headings(html)[:2] == ["Forecast", "Runs"] and html.count("finished.json: damaged") == 2
    done.write_bytes(whole)
    oof = place.run / "oof.npz"
    oof.write_bytes(oof.read_bytes()[:-40])
    html = write(place)
    assert headings(html)[:2] == ["Forecast", "Runs"] and "not a whole OOF file" in html


def test_trackers_have_pictures_of_the_worst_mistakes(place: Place) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place.run / "tensorboard"))
    events.Reload()
    epochs = [point.step for point in events.Scalars("train_loss")]
    assert [shown.step for shown in events.Images("worst_mistakes")] == epochs[4::5]


def test_watching_ends_where_nothing_trains(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "IDLE_SECONDS", 0)
    done = place.start("scripts.report", "--watch")
    assert done.status == 0 and "watched 2 runs: 0 running, 0 stopped, 2 finished" in done.out
    html = (place.output / "report" / "watch.html").read_text(encoding="utf-8")
    assert headings(html) == ["Progress", "Runs", "Learning curves"]


def test_an_empty_output_is_one_line(fresh: Place) -> None:
    assert fresh.start("scripts.report").is_one_line("holds no run", "--output_dir")


def test_submissions_of_a_plan_are_plotted(place: Place) -> None:
    (place.output / "history.csv").write_text(
        "minutes,models,nested_oof_log_loss,forecast_test_log_loss\n1.5,a,0.5,0.4\n3.5,a b,0.3,\n"
    )
    html = write(place)
    assert "2 submissions of the plan" in html and "nested OOF: 3.5, 0.3" in html
    assert "forecast: 1.5, 0.4" in html and "forecast: 3.5" not in html


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_class_names_are_only_text(evil: str, tmp_path: Path) -> None:
    import numpy as np

    from tests.ensemble.conftest import World

    rng = np.random.default_rng(0)
    targets, folds = rng.integers(0, 2, 60), np.arange(60) % 2
    world = World(tmp_path, targets, folds, (evil, f"{evil}\u202e"), rng)
    world.save(MODEL, world.logits(signal=0.5))
    oof = load_oof(world.root, world.table)
    found = panels.Study(diagnose(oof, mean_blend(oof)), None, None, ())
    shown = {"Losses": panels.losses(found), "Blend": panels.contest(found),
             "Classes": panels.classes(found), **panels.mistakes(found, None, 5)}  # fmt: skip
    html = page("t", shown)
    assert evil not in html and "<img" not in html and "\u202e" not in html
    assert html.count("alert(1)") >= 4
