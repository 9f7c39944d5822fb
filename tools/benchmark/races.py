"""All races by name."""

from benchmark.on_images import data
from benchmark.on_maps import decode, loss
from benchmark.on_networks import predict, step
from benchmark.on_tables import landmark_table

RACES = {
    "decode": decode,
    "loss": loss,
    "step": step,
    "predict": predict,
    "data": data,
    "table": landmark_table,
}
