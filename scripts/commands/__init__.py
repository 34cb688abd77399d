"""One module for each subcommand of `positron`."""
