"""Pictures that look the same and teach a network nothing: Semantic Deep Hiding.

Everything below is loaded when it is first used; `help(dh_nb.protect)` and the others
say all there is to say.
"""
__version__ = "0.1.0"

from importlib import import_module

PUBLIC = {  # name -> module; none is the name of a module
    "BadInput": "data", "ImageSet": "data", "list_datasets": "data",
    "load_dataset": "data", "Hider": "hiding", "list_presets": "hiding",
    "load_hider": "training", "train_hider": "recipes", "protect": "publishing",
    "reveal": "revealing", "verify": "verification", "evaluate": "evaluation",
    "list_methods": "methods", "register_method": "methods",
    "list_countermeasures": "countermeasures.suite",
    "register_countermeasure": "countermeasures.suite",
    "explore_distances": "explorers"}

__all__ = sorted(PUBLIC)


def __getattr__(name):
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__():
    return sorted({*globals(), *PUBLIC})
