"""Exercises of lesson 06, mixture of experts: count, gates, layout, combine, the whole layer, and a part of it."""

from dsv3_mini.course.exercises.lesson_06.combine import COMBINE
from dsv3_mini.course.exercises.lesson_06.gates import GATES
from dsv3_mini.course.exercises.lesson_06.layout import LAYOUT
from dsv3_mini.course.exercises.lesson_06.machines import LOCAL_PART
from dsv3_mini.course.exercises.lesson_06.parameters import MOE_PARAMETERS
from dsv3_mini.course.exercises.lesson_06.whole_layer import MOE

EXERCISES = (MOE_PARAMETERS, GATES, LAYOUT, COMBINE, MOE, LOCAL_PART)
