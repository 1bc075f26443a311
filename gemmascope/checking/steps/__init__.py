"""The steps of a check, one file for each subject. A step is a function from a Subject to an Outcome."""
