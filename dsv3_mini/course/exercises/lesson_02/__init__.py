"""Exercises of lesson 02, the KV cache: its size, grouped heads, the mask, texts of different lengths, writing."""

from dsv3_mini.course.exercises.lesson_02.chunk_mask import CHUNK_MASK
from dsv3_mini.course.exercises.lesson_02.decode_batch import DECODE_BATCH
from dsv3_mini.course.exercises.lesson_02.expand_groups import EXPAND_GROUPS
from dsv3_mini.course.exercises.lesson_02.longest_context import LONGEST_CONTEXT
from dsv3_mini.course.exercises.lesson_02.write import WRITE

EXERCISES = (LONGEST_CONTEXT, EXPAND_GROUPS, CHUNK_MASK, DECODE_BATCH, WRITE)
