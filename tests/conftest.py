"""Set before torch is imported: one thread, no window, no graphics card.

One thread gives the same sums on every machine, and two would wait for each other as soon
as somebody else wants a core. `OMP_NUM_THREADS=2 make test` overrules it.
"""
import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("DH_DEVICE", "cpu")
