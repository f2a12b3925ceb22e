"""Exercises of lesson 10, data: the split, encoding, pair counts, packing, and reading rearranged documents."""

from dsv3_mini.course.exercises.lesson_10.best_fit import BEST_FIT
from dsv3_mini.course.exercises.lesson_10.changes import CHANGES
from dsv3_mini.course.exercises.lesson_10.encode import ENCODE
from dsv3_mini.course.exercises.lesson_10.read_back import READ_BACK
from dsv3_mini.course.exercises.lesson_10.split import SPLIT

EXERCISES = (SPLIT, ENCODE, CHANGES, BEST_FIT, READ_BACK)
