"""`dsv3-mini eval`: bits per byte on held-out text, with an order-3 n-gram model and xz beside it."""

from __future__ import annotations

import argparse
import json

from dsv3_mini.commands.table import format_quality


def run(args: argparse.Namespace) -> int:
    """Evaluate one folder and print the table, or one JSON object."""
    from dsv3_mini.train.evaluate import evaluate_folder

    result = evaluate_folder(args.folder, text=args.text, device=args.device)
    if args.json:
        print(json.dumps(result))
    else:
        size = result["heldout_bytes"]["all"]
        print(f"{result['checkpoint']} on {size:,} held-out bytes of {result['corpus']}\n")
        print(format_quality(result))
    return 0
