"""Exercises of lesson 12, speculative decoding: accept, roll back, residual, acceptance by depth, what pays."""

from dsv3_mini.course.exercises.lesson_12.after_rejection import AFTER_REJECTION
from dsv3_mini.course.exercises.lesson_12.best_depth import BEST_DEPTH
from dsv3_mini.course.exercises.lesson_12.measured import MEASURED
from dsv3_mini.course.exercises.lesson_12.new_tokens import NEW_TOKENS
from dsv3_mini.course.exercises.lesson_12.one_round import ONE_ROUND

EXERCISES = (NEW_TOKENS, ONE_ROUND, AFTER_REJECTION, MEASURED, BEST_DEPTH)
