"""Measure how attention mechanisms scale: latency, throughput and memory against image resolution."""

from infsa_models import __version__

__all__ = ["__version__"]
