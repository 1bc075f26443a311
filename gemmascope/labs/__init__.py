"""Live widgets: gs.patching_lab, gs.head_lab, gs.steer_lab, and what they share. Imports views, sweeps and generation."""
