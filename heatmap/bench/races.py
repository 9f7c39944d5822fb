"""Every race by its name."""

from heatmap.bench.on_maps import decode, loss
from heatmap.bench.on_networks import predict, step
from heatmap.bench.on_pictures import data
from heatmap.bench.on_tables import landmark_table

RACES = {
    "decode": decode,
    "loss": loss,
    "step": step,
    "predict": predict,
    "data": data,
    "table": landmark_table,
}
