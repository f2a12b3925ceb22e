"""`dsv3-mini doctor`: is everything here, and what can this machine do?"""

from __future__ import annotations

import argparse
import json

from dsv3_mini.doctor import examine


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 when something that is needed is missing."""
    report = examine()
    print(json.dumps(report.as_json()) if args.json else report.as_text())
    return 0 if report.ok else 1
