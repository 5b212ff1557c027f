"""Foundations: random draws, processes, moving averages, schedules, precision."""
