"""Set before torch is imported: patient threads, two in all; no window, no graphics card.

And a line of the summary: what the rooms took, all together and the longest ones.
"""
import os

import pytest

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, 2 // workers)))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("DH_DEVICE", "cpu")


@pytest.fixture
def forgetful():
    "What is registered in a test is gone after it."
    from dh_nb.registry import PLUGINS, REGISTERED, TABLES
    places = (*TABLES.values(), REGISTERED, PLUGINS)
    before = [dict(place) for place in places]
    yield
    for place, then in zip(places, before):
        place.clear()
        place.update(then)


def pytest_terminal_summary(terminalreporter):
    "The rooms' seconds of processor, of two cores or of one."
    took = {r.nodeid.rpartition("[")[2][:-1]: dict(r.user_properties)["seconds of processor"]
            for reports in terminalreporter.stats.values() for r in reports
            if "seconds of processor" in dict(getattr(r, "user_properties", ()))}
    if not took: return
    longest = sorted(took, key=took.get, reverse=True)[:5]
    terminalreporter.write_line(
        f"{len(took)} rooms took {sum(took.values()):.0f} s of processor; the longest: "
        + ", ".join(f"{name} {took[name]:.0f}" for name in longest))
