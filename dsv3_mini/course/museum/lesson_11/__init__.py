"""Exhibits of lesson 11: two mistakes of the training loop, one a module."""

from dsv3_mini.course.museum.lesson_11.coupled_decay import COUPLED_DECAY
from dsv3_mini.course.museum.lesson_11.weights_only import WEIGHTS_ONLY

EXHIBITS = (COUPLED_DECAY, WEIGHTS_ONLY)
