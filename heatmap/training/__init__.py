"""Turns an experiment into a trained run: data, optimizer, schedules, steps and the loop."""
