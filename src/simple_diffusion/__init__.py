"""Simple Diffusion: denoising diffusion that is simple, clear and lightweight.

`api` holds the public names. It is imported when the first of them is used, so `simple-diffusion --help` does not wait
for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import *  # noqa: F403  for type checkers

__version__ = "0.1.0"


def _names() -> list[str]:
    return [name for name in vars(import_module(".api", __name__)) if not name.startswith("_")]


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return _names()
    if not name.startswith("_") and name in _names():
        return getattr(import_module(".api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_names()]
