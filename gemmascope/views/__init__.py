"""Self-contained pictures: gs.attention_view, lens_view, stream_view, sweep_view, sae_view and plan_view, one file each, and
in js/ the canvas module that draws them. May import sae and every room below it, among them analysis, sweeps, run, memory
and figures.
"""
