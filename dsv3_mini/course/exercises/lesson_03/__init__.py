"""Exercises of lesson 03, Positions: RoPE, its two layouts, and keys that are turned once.

References and mistakes are written as a learner would write them in the lesson: without type hints, and with the names
that the lesson has built by hand (`speeds`, `rope`, in by_hand.py), which here lean on the package.
"""

from dsv3_mini.course.exercises.lesson_03.decode_step import DECODE_STEP
from dsv3_mini.course.exercises.lesson_03.head_scores import HEAD_SCORES
from dsv3_mini.course.exercises.lesson_03.move_cached import MOVE_CACHED
from dsv3_mini.course.exercises.lesson_03.slow_pairs import SLOW_PAIRS
from dsv3_mini.course.exercises.lesson_03.to_half_split import TO_HALF_SPLIT

EXERCISES = (SLOW_PAIRS, HEAD_SCORES, TO_HALF_SPLIT, MOVE_CACHED, DECODE_STEP)
