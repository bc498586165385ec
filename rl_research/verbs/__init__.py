"""One module per verb of the command line; each adds its own parser and calls into the library."""
