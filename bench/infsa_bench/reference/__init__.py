"""The reference run: what is measured on a GPU that is there for minutes, how far it has got, how it travels."""
