"""Pure functions from records to numbers: summaries and predictions."""
