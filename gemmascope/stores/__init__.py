"""Stores: activations of many texts in files. gs.harvest runs the texts and writes a store, gs.open_store reads one.

A store is a folder: manifest.json says what was asked, shards.jsonl has a line with a checksum for every finished shard, and
the shards are safetensors files of flat rows, a row for every token that is kept.
"""
