"""What a run did and how two models differ: the lens, direct logits, attention summaries, head scores, composition and
`gs.compare`. May import `sweeps`, `generation`, `run` and the rooms below them.
"""
