"""`dsv3-mini lab`: the lessons in JupyterLab."""

from __future__ import annotations

import argparse

from dsv3_mini.lab import run_lab


def run(args: argparse.Namespace) -> int:
    """Serve the lessons until Ctrl-C."""
    return run_lab(port=args.port, browser=False if args.no_browser else None)
