"""Settings every test runs under: threads that do not spin, no hub, no update checks."""

import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # as many processes as cores
os.environ.setdefault("OMP_NUM_THREADS", "2")
# two test processes share two cores: a thread that spins for the other one stops both
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

gc.disable()  # libraries and tests stay to the end


def pytest_collection_finish() -> None:
    """Let later looks pass over what is there: one at torch and all tests takes 0.3 s."""
    gc.freeze()
    gc.enable()
