"""Exercises of lesson 04, Multi-head latent attention: what is cached, its size, how the checkpoint stores it."""

from dsv3_mini.course.exercises.lesson_04.cache_size import CACHE_BYTES
from dsv3_mini.course.exercises.lesson_04.groups import EQUAL_GROUPS
from dsv3_mini.course.exercises.lesson_04.latent_memory import LATENT_MEMORY
from dsv3_mini.course.exercises.lesson_04.scale import SCORE_SCALE
from dsv3_mini.course.exercises.lesson_04.up_projection import SPLIT_KV_B

EXERCISES = (CACHE_BYTES, EQUAL_GROUPS, SCORE_SCALE, SPLIT_KV_B, LATENT_MEMORY)
