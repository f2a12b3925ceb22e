"""Decoding: the latent cache (§2.1.1), sampling, and the loop that ties them together.

This folder and the function that people call share one name: `from dsv3_mini import generate` has to give something
that can be called, and importing a subpackage puts the subpackage there. So the subpackage can be called:
`generate(model, ...)` is `generate.decode.generate(model, ...)`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        from dsv3_mini.generate.decode import generate

        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
