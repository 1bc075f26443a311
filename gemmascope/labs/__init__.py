"""Live notebook widgets: gs.patching_lab (patching/), gs.head_lab, gs.steer_lab, gs.graph_lab (graphs/), and what they
share: sessions with numbered questions (session), workers, the widget end, controls and static fallbacks. Imports views and
the rooms below.
"""
