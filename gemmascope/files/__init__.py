"""Files: the one way to write them, JSON and CSV, paths as users type them, locks, and reading at a position on every
system. Imports errors, arguments and the other modules at the top of the package.
"""
