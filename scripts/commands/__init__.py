"""One module for each subcommand of `positron`, and those of `make`."""
