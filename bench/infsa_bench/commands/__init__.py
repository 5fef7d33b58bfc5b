"""One module per verb of the command line that both runs and reports."""
