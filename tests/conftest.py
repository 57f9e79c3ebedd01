"Set before torch is imported: two threads, no window, no graphics card."
import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("DH_DEVICE", "cpu")
