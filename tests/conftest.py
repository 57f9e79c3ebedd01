"Set before torch is imported: patient threads, two in all; no window, no graphics card."
import os

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, 2 // workers)))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("DH_DEVICE", "cpu")
