"""Simple Diffusion: denoising diffusion that is simple, clear and lightweight.

`api` lists the public names. It is imported when one of them is first used, so that `simple-diffusion --help` does not
import torch. The modules of the package are attributes, too: `sd.samplers` imports that module on first use.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import *  # noqa: F403  for type checkers

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f".{name}", __name__)
    public = {key: value for key, value in vars(import_module(".api", __name__)).items() if not key.startswith("_")}
    if name == "__all__":
        return list(public)
    if name in public:
        globals()[name] = public[name]  # the next use does not come here
        return public[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
