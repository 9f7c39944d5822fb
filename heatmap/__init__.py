"""Dense facial landmarks by heatmap regression."""

__version__ = "0.1.0"
