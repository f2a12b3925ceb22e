"""dsv3_mini: a scaled-down DeepSeek-V3 that is the real architecture, written to be read next to the report.

The names below are what lessons and scripts import. They are looked up on first use, so that `import dsv3_mini`
stays cheap and `dsv3-mini --help` never waits for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ModelConfig": "dsv3_mini.config",
    "YarnConfig": "dsv3_mini.config",
    "InputError": "dsv3_mini.errors",
    "DeepSeekV3": "dsv3_mini.model.transformer",
    "ModelOutput": "dsv3_mini.model.transformer",
    "load_pretrained": "dsv3_mini.interop.load",
    "save_pretrained": "dsv3_mini.interop.save",
    "generate": "dsv3_mini.generate.decode",
}

__all__ = ["DeepSeekV3", "InputError", "ModelConfig", "ModelOutput", "YarnConfig"]
__all__ += ["generate", "load_pretrained", "save_pretrained"]

if TYPE_CHECKING:
    from dsv3_mini.config import ModelConfig, YarnConfig
    from dsv3_mini.errors import InputError
    from dsv3_mini.generate.decode import generate
    from dsv3_mini.interop.load import load_pretrained
    from dsv3_mini.interop.save import save_pretrained
    from dsv3_mini.model.transformer import DeepSeekV3, ModelOutput


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dsv3_mini' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
