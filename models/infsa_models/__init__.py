"""Nine attention mechanisms and the vision transformer that hosts them; knows nothing of benchmarking."""

__version__ = "0.1.0"
