"""Exercises of lesson 08, the whole model: count a layer, run a stack, count by names, split experts, compare."""

from dsv3_mini.course.exercises.lesson_08.active import ACTIVE_PARAMETERS
from dsv3_mini.course.exercises.lesson_08.attention import ATTENTION_PARAMETERS
from dsv3_mini.course.exercises.lesson_08.comparison import FIRST_DIFFERENCE
from dsv3_mini.course.exercises.lesson_08.names_on_disk import SPLIT_EXPERTS
from dsv3_mini.course.exercises.lesson_08.residual_stream import RUN_STACK

EXERCISES = (ATTENTION_PARAMETERS, RUN_STACK, ACTIVE_PARAMETERS, SPLIT_EXPERTS, FIRST_DIFFERENCE)
