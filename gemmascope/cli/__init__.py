"""The command line, one file for each subcommand. Imports every room."""
