"""Exercises of lesson 00: a measure, a share of the parameters, the next token, and a check of numbers."""

from dsv3_mini.course.exercises.lesson_00.bits_per_byte import BITS_PER_BYTE
from dsv3_mini.course.exercises.lesson_00.chosen_share import CHOSEN_SHARE
from dsv3_mini.course.exercises.lesson_00.is_grounded import IS_GROUNDED
from dsv3_mini.course.exercises.lesson_00.next_tokens import NEXT_TOKENS

EXERCISES = (BITS_PER_BYTE, CHOSEN_SHARE, NEXT_TOKENS, IS_GROUNDED)
