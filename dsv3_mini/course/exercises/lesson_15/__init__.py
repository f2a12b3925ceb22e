"""Exercises of lesson 15, long context: YaRN's ramp, its speeds, its temperature, its switch; the needle's score."""

from dsv3_mini.course.exercises.lesson_15.found_share import FOUND_SHARE
from dsv3_mini.course.exercises.lesson_15.ramp_bounds import RAMP_BOUNDS
from dsv3_mini.course.exercises.lesson_15.scores import SCORES
from dsv3_mini.course.exercises.lesson_15.speeds_in_use import SPEEDS_IN_USE
from dsv3_mini.course.exercises.lesson_15.yarn_speeds import YARN_SPEEDS

EXERCISES = (RAMP_BOUNDS, YARN_SPEEDS, SCORES, SPEEDS_IN_USE, FOUND_SHARE)
