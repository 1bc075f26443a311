"""The steering lab: the lab itself (lab), the curve below its slider (curve), the text at five strengths (ladder), and where
the vector is added (places). Imports labs, views, steering and the rooms below.
"""
