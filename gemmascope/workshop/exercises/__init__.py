"""The exercises of the workshop, a file for one or two notebooks: right answers, usual wrong ones, and random inputs.

check.py lists them. May import the workshop's grading.py and learners_code.py, and the rooms that the workshop may import.
"""
