"""The one exception for input that a person gave us and can put right.

Everything a learner can get wrong (a config that cannot be, an empty corpus, a tampered checkpoint, a
prompt longer than the context) is raised as `InputError`: one message that names the field or the file and
says what would be right. The command line prints that message without a traceback and exits with 2; any
other exception is a bug of ours and keeps its traceback.
"""


class InputError(ValueError):
    """Bad input, described in one message for the person who gave it."""
