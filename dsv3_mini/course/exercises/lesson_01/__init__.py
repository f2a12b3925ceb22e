"""Exercises of lesson 01, attention: a mask, heads put back, the last token, who reaches whom, a whole layer."""

from dsv3_mini.course.exercises.lesson_01.attend_last import ATTEND_LAST
from dsv3_mini.course.exercises.lesson_01.document_mask import DOCUMENT_MASK
from dsv3_mini.course.exercises.lesson_01.merge_heads import MERGE_HEADS
from dsv3_mini.course.exercises.lesson_01.packed_attention import PACKED_ATTENTION
from dsv3_mini.course.exercises.lesson_01.reach import REACH

EXERCISES = (DOCUMENT_MASK, MERGE_HEADS, ATTEND_LAST, REACH, PACKED_ATTENTION)
