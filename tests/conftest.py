"Set before torch is imported: two patient threads, no window, no graphics card."
import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("DH_DEVICE", "cpu")
