"""From an experiment to a trained run.

prepare    data read and split; network and optimizer built or resumed
optimizer  what changes the weights, by parts of the network; their running mean
schedule   learning rate, stage and seeds as functions of progress
loop       epochs, steps, validation, checkpoints
"""
