"""From an experiment to a trained run.

prepare    data read and split; network and optimizer built or resumed
loop       epochs, steps, validation, checkpoints
schedule   learning rate and stage as functions of progress
"""
