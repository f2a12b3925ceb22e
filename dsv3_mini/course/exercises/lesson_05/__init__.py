"""Exercises of lesson 05: decoding in the latent, and what it costs."""

from dsv3_mini.course.exercises.lesson_05.break_even import BREAK_EVEN
from dsv3_mini.course.exercises.lesson_05.flops import ABSORBED_FLOPS
from dsv3_mini.course.exercises.lesson_05.output import LATENT_OUTPUT
from dsv3_mini.course.exercises.lesson_05.query import ABSORB_QUERY
from dsv3_mini.course.exercises.lesson_05.scores import LATENT_SCORES

EXERCISES = (ABSORB_QUERY, LATENT_SCORES, LATENT_OUTPUT, ABSORBED_FLOPS, BREAK_EVEN)
