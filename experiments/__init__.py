"""The recipes: each module defines one `EXPERIMENT`. Installed as `heatmap_experiments`."""
