"""What a run leaves on disk, written and read back.

folder      the names of a run's files
checkpoint  weights and progress; exact resume
ledger      metrics, images and summary, a row an epoch
wandb       Weights & Biases, fed from the ledger
model_card  MODEL.md
per_image   per_image.csv: the errors of every validation image
"""
