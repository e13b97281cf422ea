"""Options of the scripts that show, check and hand over: report, check_data, predict, export."""

from __future__ import annotations

from dataclasses import dataclass

from src.config import HardwareConfig, PlaceConfig
from src.option import option


@dataclass(frozen=True, kw_only=True)
class ReportConfig(PlaceConfig, HardwareConfig, group="run"):
    """``scripts/report.py``: everything under output/ → one page."""

    examples: int = option(
        24, "photographs of costly mistakes; 0 = a page without photographs", least=0, most=500,
        first=True,
    )  # fmt: skip
    heatmaps: bool = option(
        False, "run the networks again to show what costly mistakes looked at (Grad-CAM)",
        first=True,
    )  # fmt: skip
