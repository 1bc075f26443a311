"""The patching lab: a session without a front end (session, jobs, experiment), the page around it (lab, state, controls,
picture), and what it saves (files). Imports labs, views, sweeps and the rooms below.
"""
