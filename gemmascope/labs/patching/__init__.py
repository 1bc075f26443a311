"""The patching lab: a session without a front end, the widget around it, and what it saves. Imports labs, views and
sweeps.
"""
