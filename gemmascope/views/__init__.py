"""Self-contained pictures to look into: gs.attention_view, lens_view, stream_view, sweep_view, sae_view, plan_view; one
canvas module in js/. Imports analysis, sae and memory.
"""
