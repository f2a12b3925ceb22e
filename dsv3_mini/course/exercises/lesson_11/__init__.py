"""Exercises of lesson 11, training: clipping, a whole optimizer step, the schedule, MFU, micro-batches, resuming."""

from dsv3_mini.course.exercises.lesson_11.batch_loss import BATCH_LOSS
from dsv3_mini.course.exercises.lesson_11.clipped import CLIPPED
from dsv3_mini.course.exercises.lesson_11.go_on import GO_ON
from dsv3_mini.course.exercises.lesson_11.mfu import MFU
from dsv3_mini.course.exercises.lesson_11.optimizer_step import OPTIMIZER_STEP
from dsv3_mini.course.exercises.lesson_11.report_rate import REPORT_RATE

EXERCISES = (CLIPPED, OPTIMIZER_STEP, REPORT_RATE, MFU, BATCH_LOSS, GO_ON)
