"""Exhibits of lesson 15: two ways to get YaRN almost right, one a module."""

from dsv3_mini.course.museum.lesson_15.by_buffer import BY_BUFFER
from dsv3_mini.course.museum.lesson_15.wrong_place import WRONG_PLACE

EXHIBITS = (BY_BUFFER, WRONG_PLACE)
