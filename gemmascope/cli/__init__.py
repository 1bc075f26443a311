"""The command line, one file a subcommand; gemmascope lab starts JupyterLab. Imports every room."""
