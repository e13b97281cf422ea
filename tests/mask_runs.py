"""Flags that make runs on tiny masks short."""

from __future__ import annotations

TINY = [
    *("--device", "cpu", "--autotune", "off", "--precision", "fp32", "--ema_decay", "0"),
    *("--num_workers", "0", "--warmup_epochs", "0", "--resolution", "32x32"),
]
