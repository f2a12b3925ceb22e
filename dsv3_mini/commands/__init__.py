"""The commands of `dsv3-mini`, one a module: each takes the parsed arguments and gives the exit code.

They are imported when their command is chosen, so that `--help` answers before torch could be loaded.
"""
