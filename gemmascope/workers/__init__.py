"""Workers: processes, on this machine or on many, that each load a model once and take jobs as they become free. gs.ray says
where they are, a task what they do, and a driver puts their answers in order. Imports loading and model.
"""
