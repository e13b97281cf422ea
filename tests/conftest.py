"""Settings every test runs under: two threads that do not spin, no hub, no update checks."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
# two test processes share two cores: a thread that spins for the other one stops both
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
