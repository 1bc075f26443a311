"""Reading and writing files: whole-file writes, JSON and CSV, paths that users type, locks, and reads at an offset, on every
system. Imports only the modules at the top of the package.
"""
