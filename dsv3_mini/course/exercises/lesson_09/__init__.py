"""Exercises of lesson 09, multi-token prediction: rows, joining, loss, borders of documents, drafts."""

from dsv3_mini.course.exercises.lesson_09.borders import BORDERS
from dsv3_mini.course.exercises.lesson_09.drafts import DRAFTS
from dsv3_mini.course.exercises.lesson_09.joining import JOINING
from dsv3_mini.course.exercises.lesson_09.loss import LOSS
from dsv3_mini.course.exercises.lesson_09.rows import ROWS

EXERCISES = (ROWS, JOINING, LOSS, BORDERS, DRAFTS)
