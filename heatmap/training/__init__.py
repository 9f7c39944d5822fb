"""From an experiment to a trained run: data, network and optimizer, schedules, and the loop."""
